"""The site map: every URL and the function behind it."""

from litestar.handlers import HTTPRouteHandler

from web.routes import account, chat, health, home, limits, login, models, session, transfer, v1
from web.routes.admin import accounts, desk, groups, journal, moves, usage
from web.routes.admin import models as governed

ROUTES: list[HTTPRouteHandler] = [
    home.show_home,
    # sessions
    session.create_session,
    session.list_sessions,
    session.show_session,
    session.list_turns,
    session.follow_session,
    session.list_decisions,
    session.open_transcript,
    session.rename_session,
    session.keep_draft,
    session.extend_session,
    session.close_session,
    session.reopen_session,
    session.fork_session,
    session.delete_session,
    transfer.export_session,
    transfer.export_sessions,
    transfer.import_sessions,
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
    chat.choose_turn,
    # the same for OpenAI's clients
    v1.list_open_models,
    v1.complete_chat,
    # who
    login.show_login,
    login.sign_in,
    login.sign_out,
    login.show_setup,
    login.set_up,
    account.show_account,
    account.change_password,
    account.revoke_logins,
    account.create_token,
    account.revoke_token,
    # admin
    desk.show_desk,
    desk.follow_desk,
    desk.act,
    governed.list_governed_models,
    governed.change_model,
    governed.restore_model,
    governed.test_model,
    groups.list_groups,
    groups.change_group,
    groups.restore_group,
    groups.change_limit,
    moves.list_moves,
    moves.preview_move,
    moves.order_move,
    moves.stop_move,
    accounts.list_accounts,
    accounts.show_account_of,
    accounts.create_account,
    accounts.change_account,
    accounts.set_password,
    usage.show_usage,
    usage.export_usage,
    journal.list_journal,
    journal.export_journal,
    # machines
    health.healthz,
    health.readyz,
    health.show_openapi,
    health.show_docs,
    health.show_metrics,
]
