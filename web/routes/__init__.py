"""The site map: every URL and the function behind it."""

from litestar.handlers import HTTPRouteHandler

from web.routes import admin, chat, health, home, limits, login, models, session, v1

ROUTES: list[HTTPRouteHandler] = [
    home.show_home,
    # sessions
    session.create_session,
    session.list_sessions,
    session.show_session,
    session.list_turns,
    session.follow_session,
    session.list_decisions,
    session.rename_session,
    session.extend_session,
    session.close_session,
    session.reopen_session,
    session.fork_session,
    session.delete_session,
    # models and limits
    models.list_models,
    models.switch_model,
    limits.show_limits,
    # chat
    chat.begin_turn,
    chat.show_turn,
    chat.follow_turn,
    chat.stop_turn,
    chat.retry_turn,
    chat.edit_turn,
    # the same for OpenAI's clients
    v1.list_open_models,
    v1.complete_chat,
    # who
    login.show_login,
    login.sign_in,
    login.sign_out,
    login.show_setup,
    login.set_up,
    # admin
    admin.show_desk,
    admin.list_governed_models,
    admin.change_model,
    admin.restore_model,
    admin.list_groups,
    admin.change_group,
    admin.restore_group,
    admin.change_limit,
    admin.list_moves,
    admin.preview_move,
    admin.order_move,
    admin.stop_move,
    # machines
    health.healthz,
    health.readyz,
    health.show_openapi,
]
