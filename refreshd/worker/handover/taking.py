"""Taking shards from another worker: the part that all hand-overs share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refreshd.worker.handover import frames
from refreshd.worker.handover.shards import Receiver
from refreshd.worker.handover.steps import reached
from refreshd.worker.handover.talk import Talk

if TYPE_CHECKING:
    from refreshd.worker.hub import Hub


class ShardTaker:
    """Takes what `talk.slot` gives."""

    def __init__(self, hub: Hub, talk: Talk) -> None:
        self.hub = hub
        self.talk = talk
        self._receiver = Receiver(hub.engine)

    def __len__(self) -> int:
        return len(self._receiver)

    def take(self, frame: frames.Frame) -> None:
        """Does what a frame says. Raises: ValueError, KeyError, WireError for what makes no sense."""
        match frame:
            case frames.Begin():
                self._begin(frame)
            case frames.Copy():
                # Before what is here can be pushed, and end.
                for lane in {self.hub.shards.lane(task.id) for task in self._receiver.copy(frame)}:
                    self.hub.saver(lane)
                reached("copying")
            case frames.Shards():
                self.hub.engine.clock.turn()
                self._receiver.adopt(frame)
                self.hub.pusher.own(task[0] for group in frame.groups for task in group.tasks)
            case frames.Owned():
                self._own(frame)
            case frames.Sync():
                self.talk.tell(frames.Synced())

    def _begin(self, frame: frames.Begin) -> None:
        if frame.version != frames.VERSION:
            raise ValueError(
                f"refreshd {frame.release} hands over in version {frame.version}, this one takes over in "
                f"{frames.VERSION}; stop the engine and start it anew"
            )
        # A task that is accepted here must not look older than what the other has said to be finished.
        self.hub.engine.serials.after(frame.last_serial)

    def _own(self, frame: frames.Owned) -> None:
        hub = self.hub
        for lane in {hub.shards.lane_by_shard[shard] for shard in frame.shards}:
            hub.saver(lane).lane.give_ids([entry for entry in frame.ids if hub.shards.lane(entry[1]) == lane])
        for task_id, watchers in frame.watches:
            hub.watches.put(task_id, watchers)
            if task_id not in hub.engine.tasks:
                hub.cluster.elsewhere.follow(task_id)
        hub.shards.give(frame.shards, hub.shards.slot)
        reached("owning")

    def clear(self) -> None:
        """Nothing more comes: what was copied and not given is not this worker's."""
        self._receiver.clear()
