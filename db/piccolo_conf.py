"""Piccolo's entry point, found by `PICCOLO_CONF=db.piccolo_conf`: which apps there are.

The engine is not made here: `db.engine.open_engine` makes it and binds the tables to it.
"""

from piccolo.conf.apps import AppRegistry

APP_REGISTRY = AppRegistry(apps=["db.piccolo_app"])
