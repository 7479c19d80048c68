"""Real workers are told another configuration, as a reload does it; the test is their master."""

from __future__ import annotations

from contextlib import ExitStack

from refreshd import config, control
from tests.peer.raw import Gone, Peer, owned_by
from tests.refreshd.worker.handover.workers import Workers

POP1 = '[[proxy]]\nname = "pop1"\ngroup = "eu"\n'
POP2 = '[[proxy]]\nname = "pop2"\ngroup = "us"\n'


def _tell(workers: Workers, text: str, engine: str = "") -> list[str]:
    """Tells every worker; what each says about it."""
    head = f'[engine]\nlisten = "127.0.0.1:0"\ndata = "{workers.folder}"\n{engine}\n'
    plain = config.to_plain(config.parse(head + text))
    for child in workers.serving.values():
        child.send(control.Configure(7, plain))
    answers = [workers.wait_for(child, control.Configured) for child in workers.serving.values()]
    assert [answer.number for answer in answers] == [7] * len(answers)
    return [answer.why for answer in answers]


def _greet(stack: ExitStack, workers: Workers, slot: int, more: str) -> Peer:
    peer = stack.enter_context(Peer(workers.address))
    peer.ok(f"hello v=1 worker={slot} {more}")
    return peer


def test_the_fleet_changes_while_clients_and_other_proxies_go_on() -> None:
    with Workers(settings="open_fleet = false", proxies=("pop1", "pop2")) as workers, ExitStack() as stack:
        workers.start_all()
        clients = [_greet(stack, workers, slot, "role=client") for slot in range(2)]
        stays = [_greet(stack, workers, slot, "role=proxy name=pop2") for slot in range(2)]
        moves = [_greet(stack, workers, slot, "role=proxy name=pop1") for slot in range(2)]
        closed = "open_fleet = false"
        assert _tell(workers, POP1 + POP2.replace("us", "default"), closed) == ["", ""]
        for peer in moves:
            # It is over only once everything was heard.
            lines = []
            try:
                while True:
                    lines.append(peer.line().verb)
            except Gone:
                assert lines == ["!drain"]
        for slot, (client, proxy) in enumerate(zip(clients, stays, strict=True)):
            proxy.ok("ready credit=10")
            _greet(stack, workers, slot, "role=proxy name=pop1 group=eu").ok("ready credit=10")
            (task_id,) = owned_by(slot, "for-eu")
            assert client.post(task_id, "type=url scope=eu")["total"] == "1"
            for other in clients:
                assert other.state(task_id) in ("pending", "active")


def test_what_a_worker_cannot_do_it_says() -> None:
    with Workers(workers=1) as workers, ExitStack() as stack:
        workers.start_all()
        client = _greet(stack, workers, 0, "role=client")
        assert _tell(workers, "", 'id = "e2"') == ["engine.id takes effect at a restart only"]
        workers.serving[0].send(control.Configure(8, {"engine": 5}))
        assert "Expected `object`" in workers.wait_for(workers.serving[0], control.Configured).why
        assert _tell(workers, "", "tasks_max = 5") == [""]
        client.ok("ping")


def test_who_takes_over_is_configured_too() -> None:
    with Workers(proxies=("pop1",), settings="open_fleet = false") as workers, ExitStack() as stack:
        workers.start_all()
        assert _tell(workers, POP1 + POP2, "open_fleet = false") == ["", ""]
        proxy = _greet(stack, workers, 0, "role=proxy name=pop2")
        workers.config = config.parse(
            f'[engine]\nlisten = "127.0.0.1:0"\ndata = "{workers.folder}"\nopen_fleet = false\n{POP1}{POP2}'
        )
        workers.roll(0)
        proxy.ok("beat")
        assert _tell(workers, POP1, "open_fleet = false") == ["", ""]
        assert proxy.line().verb == "!drain"
