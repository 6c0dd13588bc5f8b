"""A step that raises is narrowed down to the rows that raise. No torch."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from microturn.runtime.engine import Engine, RowInput, RowOutput, TickOutputs
from microturn.runtime.errors import EngineLost
from microturn.runtime.plan import TickPlan, part_of

log = logging.getLogger("microturn.runtime.isolate")


@dataclass
class Stepped:
    """What came of a plan, filled as its parts are stepped.

    parts     the plans that were committed, with what they made; one unless something raised
    culprits  by session: what a step of its row alone raised
    raised    steps that raised
    """

    parts: list[tuple[TickPlan, TickOutputs]] = field(default_factory=list)
    culprits: dict[str, Exception] = field(default_factory=dict)
    raised: int = 0

    @property
    def rows(self) -> Mapping[str, RowOutput]:
        """Of all parts."""
        if len(self.parts) == 1:
            return self.parts[0][1].rows
        return {key: row for _, made in self.parts for key, row in made.rows.items()}

    @property
    def experts(self) -> int:
        """Whose weights all parts read, each for itself."""
        return sum(made.experts for _, made in self.parts)

    @property
    def committed(self) -> Collection[str]:
        """Sessions whose row was stepped."""
        return {row.session_id for plan, _ in self.parts for row in plan.rows}


def step_apart(
    engine: Engine,
    plan: TickPlan,
    inputs: Mapping[str, RowInput],
    suspects: Collection[str],
    done: Stepped,
) -> None:
    """Steps the plan; where that raises, its halves, and so on to the rows that raise alone.

    Rows are independent to the bit and a step that raises changes nothing, so the other sessions
    get what they would have got. One culprit among B rows costs 2 log2(B) steps, once: suspects,
    the culprits of earlier ticks, are stepped on their own from then on. B rows cost at most
    2 B - 1 steps. Raises EngineLost when the engine says that it is, and what is no Exception.
    """
    alone = [row for row in plan.rows if row.session_id in suspects]
    waiting = [part_of(plan, (row,)) for row in alone]
    if rows := tuple(row for row in plan.rows if row.session_id not in suspects):
        waiting.append(part_of(plan, rows) if alone else plan)
    while waiting:
        part = waiting.pop()
        try:
            made = engine.step(part, inputs)
        except EngineLost:
            raise
        except Exception as error:
            done.raised += 1
            if len(part.rows) == 1:
                done.culprits[part.rows[0].session_id] = error
                continue
            rows = part.rows
            log.error("tick %d: a step of %d rows raised", plan.tick, len(rows), exc_info=error)
            middle = len(rows) // 2
            waiting += [part_of(plan, rows[middle:]), part_of(plan, rows[:middle])]
        else:
            done.parts.append((part, made))
