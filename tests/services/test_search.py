"""Searching: what was said is found by whoever said it, newest first, from the step on that stores it."""

import re
import time
from typing import Any
from uuid import UUID

import pytest

import services.upkeep
from db.db_session import DbSession, Piece
from db.engine import Engine
from db.words import Asked, folded, words_of
from services import search
from services.actor import Actor
from services.brought import Brought
from services.outcomes import Found
from services.session_service import SessionService
from tests.conftest import AtOnce, Clock, Configure, Everything, Refused, StorageFails

#: what somebody might type who wants more than words
HOSTILE = [
    '"', "'", '" OR 1=1 --', "';DROP TABLE said;--", "*", "a*", "^a", "a NEAR b", "NEAR(a b, 3)", "words : a", "a AND",
    "NOT a", "(a", "a:*", "!a", "a <-> b", "a & | b", "%", "_", "a_b", "\\", "{words}:a", "-a", "a\nb", "a\u2028b",
    "\u202eabc", "ａ", "İ", "ﬀ", "👩‍👩‍👧", "\u0301", "x" * 10_000, "a " * 5_000, "库" * 10_000, "_" * 99, "a\x01b",
]  # fmt: skip


async def told(
    sessions: SessionService,
    db_session: DbSession,
    actor: Actor,
    prompt: str,
    reply: str,
    session_id: UUID | None = None,
) -> UUID:
    turn = (await sessions.begin_turn(session_id, prompt, db_session, actor=actor)).turn
    await sessions.finish_turn(turn.id, db_session, state="done", tail=reply)
    return turn.id


async def found(
    sessions: SessionService, db_session: DbSession, actor: Actor, q: str, **which: str
) -> list[tuple[UUID, Found]]:
    page = await sessions.list_sessions(db_session, actor=actor, q=q, **which)  # type: ignore[arg-type]
    return [(live.row.id, live.found) for live in page.sessions if live.found is not None]


def marked(one: Found) -> str:
    text, moved = one.text, 0
    for start, end in one.marks:
        text = f"{text[: start + moved]}[{text[start + moved : end + moved]}]{text[end + moved :]}"
        moved += 2
    return text


async def test_F1_a_message_is_found_when_it_is_accepted_and_its_reply_when_it_has_ended(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, clock: Clock
) -> None:
    turn = (await sessions.begin_turn(session_id, "Where is Carthage?", db_session, actor=ann)).turn
    (one,) = await found(sessions, db_session, ann, "carthage")
    assert one == (session_id, Found(turn.id, "Where is Carthage?", ((9, 17),)))
    await sessions.append([Piece(session_id, turn.id, 0, "Near Tunis, ")], db_session)
    assert await found(sessions, db_session, ann, "tunis") == []
    await sessions.finish_turn(turn.id, db_session, state="done", tail="in ruins", start=12)
    assert [marked(one) for _, one in await found(sessions, db_session, ann, "tunis")] == ["Near [Tunis], in ruins"]
    # Words of the prompt and of the reply together.
    assert len(await found(sessions, db_session, ann, "ruins carthage")) == 1
    # A worker that was lost, a stop, an edit: whatever is stored is found.
    lost = (await sessions.begin_turn(session_id, "And Rome?", db_session, actor=ann)).turn
    await sessions.append([Piece(session_id, lost.id, 0, "On the Tiber")], db_session)
    clock.pass_(minutes=1)
    assert await found(sessions, db_session, ann, "tiber") == []
    await sessions.sweep(db_session)
    assert [one.turn_id for _, one in await found(sessions, db_session, ann, "tiber")] == [lost.id]
    edited = (await sessions.edit_turn(lost.id, "And Troy?", db_session, actor=ann)).turn
    assert [one.turn_id for _, one in await found(sessions, db_session, ann, "troy")] == [edited.id]


async def test_F1_titles_forks_and_imports_are_found_and_what_is_deleted_is_not(
    sessions: SessionService, db_session: DbSession, engine: Engine, ann: Actor, session_id: UUID,
    everything: Everything,
) -> None:  # fmt: skip
    await sessions.rename_session(session_id, "Plans for Rome", db_session, actor=ann)
    assert await found(sessions, db_session, ann, "plan") == [(session_id, Found(None, "Plans for Rome", ((0, 5),)))]
    await sessions.rename_session(session_id, "Nothing", db_session, actor=ann)
    assert await found(sessions, db_session, ann, "plan") == []
    await told(sessions, db_session, ann, "Hello", "obelisk", session_id)
    fork = (await sessions.fork_session(session_id, db_session, actor=ann)).row.id
    brought = Brought.told("", [("One", "obelisk"), ("Two", "")])
    brought_in = (await sessions.import_session(brought, db_session, actor=ann)).row.id
    assert [id for id, _ in await found(sessions, db_session, ann, "obelisk")] == [brought_in, fork, session_id]
    await sessions.delete_session(fork, db_session, actor=ann)
    assert [id for id, _ in await found(sessions, db_session, ann, "obelisk")] == [brought_in, session_id]
    assert [id for id, _ in await found(sessions, db_session, ann, "obelisk", show="deleted")] == [fork]
    for id in (fork, session_id, brought_in):
        await sessions.delete_session(id, db_session, actor=ann, for_good=True)
    assert (await everything())["said"] == []
    assert await found(sessions, db_session, ann, "obelisk") == []
    if engine.engine_type == "sqlite":
        await engine.run("INSERT INTO said_words (said_words, rank) VALUES ('integrity-check', 1)")


async def test_F1_what_is_copied_is_found_a_part_at_a_time_whatever_happens_meanwhile(
    sessions: SessionService, other_worker: SessionService, db_session: DbSession, ann: Actor, guest: Actor,
    at_once: AtOnce, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """All in one transaction, a long import kept every other writer waiting for seconds."""
    monkeypatch.setattr(services.upkeep, "INDEXED_TURNS", 2)
    monkeypatch.setattr(services.upkeep, "INDEXED_ROUNDS", 1)
    exchanges = [(f"Part {number}", f"word{number}") for number in range(7)]

    async def known(actor: Actor, **which: str) -> list[int]:
        return [n for n in range(7) if await found(sessions, db_session, actor, f"word{n}", **which)]

    id = (await sessions.import_session(Brought.told("", exchanges), db_session, actor=guest)).row.id
    assert await known(guest) == [0, 1]
    later = await told(sessions, db_session, guest, "Later", "obelisk", id)
    # Whoever imported it may be gone: another process goes on.
    await other_worker.sweep(db_session, thorough=False)
    assert await known(guest) == [0, 1, 2, 3]
    await sessions.adopt_sessions(guest.id, db_session, actor=ann)
    await sessions.delete_session(id, db_session, actor=ann)
    results = await at_once(3, lambda _, db: other_worker.sweep(db, thorough=False))
    assert len(results.done) == 3
    assert (await known(ann, show="deleted"), await known(ann), await known(guest)) == ([*range(7)], [], [])
    await sessions.restore_session(id, db_session, actor=ann)
    assert await known(ann) == [*range(7)]
    assert [one.turn_id for _, one in await found(sessions, db_session, ann, "obelisk")] == [later]
    for _ in range(2):
        assert await db_session.list_sessions_to_index(9) == []
        await sessions.sweep(db_session)
    # One long turn is a part of its own, and what is erased meanwhile is not come back to.
    monkeypatch.setattr(services.upkeep, "INDEXED_CHARACTERS", 3)
    fork = (await sessions.fork_session(id, db_session, actor=ann)).row.id
    assert [one[0] for one in await found(sessions, db_session, ann, "word1")] == [id]
    await sessions.sweep(db_session, thorough=False)
    assert [one[0] for one in await found(sessions, db_session, ann, "word1")] == [fork, id]
    monkeypatch.setattr(services.upkeep, "ERASED_TURNS", 2)
    await sessions.delete_session(fork, db_session, actor=ann, for_good=True)
    assert await db_session.list_sessions_to_index(9) == []


async def test_F1_what_fails_halfway_is_not_found(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, storage_fails: StorageFails
) -> None:
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    for place in ("journal", "commit"):
        with pytest.raises(Exception, match=r"storage|database|try again"):
            async with storage_fails(place):
                await sessions.finish_turn(turn.id, db_session, state="done", tail="obelisk")
        assert await found(sessions, db_session, ann, "obelisk") == []
    await sessions.finish_turn(turn.id, db_session, state="done", tail="obelisk")
    for place in ("journal", "commit"):
        with pytest.raises(Exception, match=r"storage|database|try again"):
            async with storage_fails(place):
                await sessions.delete_session(session_id, db_session, actor=ann, for_good=True)
        assert len(await found(sessions, db_session, ann, "obelisk")) == 1


async def test_F2_everybody_finds_their_own(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, ada: Actor, guest: Actor, script: Actor
) -> None:
    mark = f"_{ann.id.hex}"
    hers = await told(sessions, db_session, ann, "obelisk", mark)
    his = await told(sessions, db_session, bob, f"obelisk {mark}", f"words {ann.id.hex}")
    for actor, expected in ((ann, [hers]), (script, [hers]), (bob, [his]), (ada, []), (guest, [])):
        assert [one.turn_id for _, one in await found(sessions, db_session, actor, "obelisk")] == expected
    assert [one.turn_id for _, one in await found(sessions, db_session, ann, mark)] == [hers]
    # An admin looks through titles given by hand, of everybody's.
    await sessions.create_session(db_session, actor=bob, title="Obelisk plans")
    page = await sessions.list_sessions(db_session, actor=ada, everybody=True, q="obelisk")
    assert [(live.title, live.found) for live in page.sessions] == [("Obelisk plans", None)]


async def test_F2_each_session_is_found_once_by_its_newest_match_page_by_page(
    sessions: SessionService, db_session: DbSession, ann: Actor, monkeypatch: pytest.MonkeyPatch, configure: Configure
) -> None:
    await configure("user", turns="0")
    monkeypatch.setattr(search, "HITS", 3)
    ids = [(await sessions.create_session(db_session, actor=ann)).row.id for _ in range(5)]
    newest: dict[UUID, UUID] = {}
    for number in range(15):
        id = ids[number * 7 % 5]
        newest[id] = await told(sessions, db_session, ann, f"obelisk {number}", "", id)
    in_order = sorted(newest, key=lambda id: newest[id], reverse=True)
    for limit in (1, 2, 3, 5, 9):
        after, seen = None, []
        while True:
            page = await sessions.list_sessions(db_session, actor=ann, q="obelisk", limit=limit, after=after)
            seen += [(live.row.id, live.found.turn_id) for live in page.sessions if live.found is not None]
            if (after := page.next) is None:
                break
        assert seen == [(id, newest[id]) for id in in_order], limit
    # Among very many a page is looked for in part.
    monkeypatch.setattr(search, "LOOKS", 1)
    after, seen, pages = None, [], 0
    while True:
        page = await sessions.list_sessions(db_session, actor=ann, q="obelisk", limit=9, after=after)
        seen, pages = seen + [live.row.id for live in page.sessions], pages + 1
        if (after := page.next) is None:
            break
    assert (seen, pages > 4) == (in_order, True)


async def test_F2_a_search_goes_on_behind_what_is_ones_own_and_tells_no_number(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, refused: Refused
) -> None:
    """Counted over everybody's, a number told how much is said on the whole server."""
    titled = (await sessions.create_session(db_session, actor=ann, title="Obelisk")).row.id
    turns = [await told(sessions, db_session, ann, f"obelisk {number}", "", None) for number in range(3)]
    await told(sessions, db_session, bob, "obelisk", "")
    seen, after = list[UUID | None](), None
    for hit in (*turns[::-1], titled):
        page = await sessions.list_sessions(db_session, actor=ann, q="obelisk", limit=1, after=after)
        seen += [live.found.turn_id for live in page.sessions if live.found is not None]
        after = page.next
        assert after == ((hit, hit) if hit != titled else None)
    assert seen == [*turns[::-1], None]
    # Behind a title, and behind what was deleted meanwhile; not behind what is another's, or gone.
    behind = {"q": "obelisk", "after": (titled, titled)}
    assert (await sessions.list_sessions(db_session, actor=ann, **behind)).sessions == []
    session_id = (await db_session.find_turn(turns[1])).session_id  # type: ignore[union-attr]
    behind["after"] = (turns[1], turns[1])
    await sessions.delete_session(session_id, db_session, actor=ann)
    assert len((await sessions.list_sessions(db_session, actor=ann, **behind)).sessions) == 2
    async with refused("invalid_request"):
        await sessions.list_sessions(db_session, actor=bob, **behind)
    await sessions.delete_session(session_id, db_session, actor=ann, for_good=True)
    async with refused("invalid_request"):
        await sessions.list_sessions(db_session, actor=ann, **behind)


async def test_F2_a_search_is_narrowed_as_the_list_is(
    sessions: SessionService, db_session: DbSession, ann: Actor
) -> None:
    ids = [(await sessions.create_session(db_session, actor=ann, title=f"Plan {n}")).row.id for n in range(4)]
    await sessions.close_session(ids[0], db_session, actor=ann)
    await sessions.archive_session(ids[1], db_session, actor=ann)
    await sessions.switch_model(ids[2], "smart", db_session, actor=ann)
    for which, expected in (
        ({}, [3, 2, 1, 0]), ({"show": ""}, [3, 2, 0]), ({"state": "closed"}, [0]), ({"show": "archived"}, [1]),
        ({"model": "smart"}, [2]), ({"state": "active", "show": ""}, [3, 2]),
    ):  # fmt: skip
        assert [id for id, _ in await found(sessions, db_session, ann, "plan", **which)] == [ids[n] for n in expected]


async def test_F3_what_is_typed_is_only_ever_words(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure
) -> None:
    """It never fails, and finds what it says where that was said, and no more."""
    await configure("user", turns="0", sessions_created="0", open_sessions=0)
    for q in HOSTILE:
        before = await found(sessions, db_session, ann, q)
        asked = Asked(q)
        if not any("_" in word for word in asked.words):
            assert len(before) == len(await found(sessions, db_session, ann, re.sub(r"[\W_]+", " ", q))), q
        turn_id = await told(sessions, db_session, ann, "I typed: " + q, "")
        assert re.search(r"[^\W_]", q) is None or asked, q
        if asked:
            assert (await found(sessions, db_session, ann, q))[0][1].turn_id == turn_id, q
        else:
            assert await found(sessions, db_session, ann, q) == [], q


async def test_F3_words_are_found_whatever_their_writing(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID
) -> None:
    said = (
        "Müller wohnt in der Straße 5, naïve Café\nцарь-колокол ΣΊΣΥΦΟΣ 데이터베이스를 हिन्दी में مُحَمَّد "
        "我们的数据库很大。東京タワーへ行く. snake_case fooBar v1.2"
    )
    await told(sessions, db_session, ann, said, "", session_id)
    for q, shown in (
        ("muller", "[Müller]"), ("MÜLLER", "[Müller]"), ("strasse", "[Straße]"), ("naive cafe", "[naïve] [Café]"),
        ("колокол", "[колокол]"), ("σίσυφος", "[ΣΊΣΥΦΟΣ]"), ("데이터", "[데이터베이스를]"), ("हिन्दी", "[हिन्दी]"),
        ("محمد", "[مُحَمَّد]"), ("数据库", "我们的[数据库]很大"), ("库", "数据[库]很"), ("東京", "[東京]タワー"),
        ("东京", ""), ("タワー", "東京[タワー]へ"), ("case", "snake_[case]"), ("snake_case", "[snake]_[case]"),
        ("foob", "[fooBar]"), ("bar", ""), ("v1 2", "[v1].[2]"), ("wohnt ", "[wohnt]"), ("wohn ", ""), ("m", ""),
    ):  # fmt: skip
        texts = [marked(one) for _, one in await found(sessions, db_session, ann, q)]
        assert len(texts) == bool(shown) and shown in "".join(texts), (q, texts)


async def test_F3_letters_with_signs_symbols_and_the_ends_of_names_are_found(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID
) -> None:
    said = "Łódź, đak, ısparta, Ørsted and æther: C++17 or C# beside plain C, 5 € 🦊🏽 ≤ 3"
    await told(sessions, db_session, ann, said, "", session_id)
    for q, shown in (
        ("lodz", "[Łódź]"), ("łódź", "[Łódź]"), ("dak", "[đak]"), ("isparta", "[ısparta]"), ("ISPARTA", "[ısparta]"),
        ("orsted", "[Ørsted]"), ("ørst", "[Ørsted]"), ("aether", "[æther]"),
        ("C++", "[C++]17 or C#"), ("c#", "or [C#] beside"), ("c ", "[C]++17 or [C]# beside plain [C],"),
        ("🦊", "[🦊]"), ("€", "5 [€]"), ("≤", "[≤] 3"), ("fox", ""), ("🐍", ""), ("g++", ""), ("c++ 🦊", "[C++]"),
    ):  # fmt: skip
        texts = [marked(one) for _, one in await found(sessions, db_session, ann, q)]
        assert len(texts) == bool(shown) and shown in "".join(texts), (q, texts)


async def test_F3_what_is_not_seen_in_a_word_parts_it_from_nobody(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID
) -> None:
    """A page that was copied brings soft hyphens along; ʻ is typed as an apostrophe on most keyboards."""
    said = "Donau\u00addampf\u00adschiff zero\u200bwidth เบียร์\u200bสด Hawai\u02bbi п\u02bcять ex\ufeffact"
    await told(sessions, db_session, ann, said, "", session_id)
    for q, shown in (
        ("donaudampfschiff", "[Donau\u00addampf\u00adschiff]"), ("Donau\u00addampfschiff", "[Donau\u00addampf"),
        ("donaud", "[Donau"), ("zerowidth", "[zero\u200bwidth]"), ("เบียร์สด", "[ยร]"), ("exact", "[ex\ufeffact]"),
        ("hawai'i", "[Hawai]\u02bb[i]"), ("Hawai\u02bbi", "[Hawai]\u02bb[i]"), ("п'ять", "[п]\u02bc[ять]"),
        ("width", ""),
    ):  # fmt: skip
        texts = [marked(one) for _, one in await found(sessions, db_session, ann, q)]
        assert len(texts) == bool(shown) and shown in "".join(texts), (q, texts)


async def test_F3_what_an_earlier_release_put_into_the_index_comes_to_be_found_as_today(
    sessions: SessionService, other_worker: SessionService, db_session: DbSession, engine: Engine, ann: Actor,
    session_id: UUID, at_once: AtOnce, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A few sessions at a time, in their order, whoever sweeps and whatever is written meanwhile."""
    monkeypatch.setattr(services.upkeep, "REINDEXED_SESSIONS", 2)
    ids = [session_id, *[(await sessions.create_session(db_session, actor=ann)).row.id for _ in range(4)]]
    for number, id in enumerate(ids):
        await told(sessions, db_session, ann, f"{number} Łódź", "in C++", id)
        await sessions.rename_session(id, f"{number} Gdański 🦊", db_session, actor=ann)
    deleted, gone = ids[1], ids[2]
    await sessions.delete_session(deleted, db_session, actor=ann)

    async def known(q: str, **which: str) -> list[UUID]:
        return [id for id, _ in await found(sessions, db_session, ann, q, **which)]

    order = [id for id in reversed(ids) if id != deleted]
    assert await known("lodz") == await known("gdanski") == order
    await engine.run("DELETE FROM reindexing")
    await engine.run(f"INSERT INTO reindexing (name, after_session) VALUES ('search', '{UUID(int=0)}')")
    # As the release before wrote it: plain words, and letters that were not taken apart.
    old = "array_to_tsvector(string_to_array($1, ' '))" if engine.engine_type == "postgres" else "?1"
    for row in await engine.run("SELECT no, owner_id, session_id, turn_id FROM said"):
        words = "0 łodz in c" if row["turn_id"] is not None else "0 gdański"
        told_so = " ".join([f"_{UUID(str(row[name])).hex}" for name in ("owner_id", "session_id")]) + f" {words}"
        place = "$2" if engine.engine_type == "postgres" else "?2"
        await engine.run(f"UPDATE said SET words = {old} WHERE no = {place}", [told_so, row["no"]])
    assert await known("lodz") == await known("🦊") == []
    await sessions.sweep(db_session)
    assert await known("lodz") == await known("🦊") == [session_id]
    assert await known("c++", show="deleted") == [deleted]
    await sessions.delete_session(gone, db_session, actor=ann, for_good=True)
    results = await at_once(3, lambda _, db: other_worker.sweep(db, thorough=False))
    assert len(results.done) == 3
    for _ in range(3):
        await sessions.sweep(db_session)
    order.remove(gone)
    assert await known("lodz") == await known("gdanski") == await known("c++ lodz") == await known("🦊") == order
    assert await engine.run("SELECT * FROM reindexing") == []
    assert await db_session.list_sessions_to_index(9) == []


async def test_F3_of_a_long_text_the_place_is_shown(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID
) -> None:
    await told(sessions, db_session, ann, "Hello", "word " * 4000 + "the\nobelisk  stands, obelisk! " + "more " * 90)
    ((_, one),) = await found(sessions, db_session, ann, "obelisk")
    text = marked(one)
    assert "the [obelisk]  stands, [obelisk]! more" in text
    assert text[0] == text[-1] == "…" and len(one.text) <= search.EXCERPT + 2


async def test_F2_a_reply_of_very_many_words_is_stored_and_found_by_its_first(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID
) -> None:
    reply = " ".join(f"wort{number:x}ß" for number in range(300_000))
    await told(sessions, db_session, ann, "Hello", reply, session_id)
    assert len(await found(sessions, db_session, ann, "wort1f4ß ")) == 1
    assert await found(sessions, db_session, ann, "wort493dfß ") == []


async def test_F3_no_text_takes_long_to_be_found(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID
) -> None:
    """Marks that are not in their order were put into it one past another: a minute for this one, for everybody."""
    many = "\u0301" * 49_000 + "\u0323" * 49_000
    began = time.process_time()
    await told(sessions, db_session, ann, f"obe\u0301lisk a{many}", f"{many}\ufdfa" * 10, session_id)
    ((_, one),) = await found(sessions, db_session, ann, "obelisk")
    assert time.process_time() - began < 20
    assert marked(one).startswith("[obélisk] á") and len(one.text) <= search.EXCERPT + 1


async def test_F2_long_texts_are_looked_through_for_the_first_of_a_page(
    sessions: SessionService, db_session: DbSession, ann: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "READ_TURNS", 2)
    monkeypatch.setattr(search, "PAGE_CHARACTERS", 9_000)
    for number in range(5):
        await told(sessions, db_session, ann, f"{number} {'word ' * 800}obelisk", "")
    texts = [marked(one) for _, one in await found(sessions, db_session, ann, "obelisk")]
    assert ["[obelisk]" in text for text in texts] == [True] * 4 + [False]
    assert texts[4] == f"0 {'word ' * 800}"[: search.EXCERPT] + "…"


async def test_F2_many_searches_at_once_take_one_thread(
    sessions: SessionService, db_session: DbSession, ann: Actor, at_once: AtOnce, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The threads are those in which replies are stored and rendered too."""
    looks, inside, excerpt = list[int](), list[int](), search.excerpt

    def watched(*asked: Any) -> Any:
        inside.append(1)
        time.sleep(0.01)
        looks.append(len(inside))
        inside.pop()
        return excerpt(*asked)

    await told(sessions, db_session, ann, "obelisk", "Hello")
    monkeypatch.setattr(search, "excerpt", watched)
    results = await at_once(8, lambda _, db: sessions.list_sessions(db, actor=ann, q="obelisk"))
    assert (len(results.done), results.codes, looks) == (8, [], [1] * 16)


def test_F2_a_long_text_is_cut_between_words() -> None:
    told = [f"wört{number}" for number in range(9_000)] + ["库库", "数据", "据库"]
    text = " ".join(told[:-3]) + " " + "库" * 30_000 + "数据库"
    assert set(words_of(text).split()) == {*map(folded, told), "库", "数", "据", "库数"}
