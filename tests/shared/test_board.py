"""The board against a fold from scratch and against what its answers mean, over histories that the deciders made."""

from collections import Counter
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from shared import commands as c
from shared import events as e
from shared.board import Board, in_order
from shared.plan import decide as decide_plan
from shared.spec import DELIVER, MAX_PARALLEL, AgentSpec, PlanSpec, TaskSpec
from shared.subjects import PLAN
from shared.task import IN_FLIGHT, TaskState, timer
from shared.task_decisions import decide as decide_task
from tests.shared.strategies import NOW, PERSON, SH, plan_specs

LATER = NOW + timedelta(days=40)


class Game:
    """A plan under way: commands go in, events are kept."""

    def __init__(self, spec: PlanSpec, board: Board | None = None) -> None:
        self.board = board or Board()
        self.log: list[tuple[str, e.Event]] = []
        self.spec = spec
        self.max_parallel = spec.max_parallel or MAX_PARALLEL
        self.codes = [t.code for t in in_order(spec)]
        self._executions = 0
        draft = c.Draft(candidate="c", spec=spec, repo_url="u", base_commit="b")
        for command in (draft, c.Finalize(candidate="c")):
            self.to_plan(command)

    def finalize(self) -> None:
        for index, task in enumerate(in_order(self.spec)):
            agent = None if task.code == DELIVER else self.spec.agents[task.assignee]
            self.to_task(task.code, c.PlanTask(digest=self.board.plan.digest, index=index, spec=task, agent=agent))
        self.to_plan(c.ConfirmFinalized(digest=self.board.plan.digest))

    def to_plan(self, command: c.PlanCommand) -> None:
        self._add(PLAN, decide_plan(self.board.plan, command))

    def to_task(self, code: str, command: c.TaskCommand) -> None:
        self._add(code, decide_task(self.board.tasks.get(code, TaskState()), command))

    def _add(self, entity: str, event: e.Event | None) -> None:
        if event is not None:
            self.log.append((entity, event))
            self.board.apply(entity, event, len(self.log))

    def dispatch(self, code: str) -> None:
        state = self.board.tasks[code]
        if state.agent == PERSON:
            ready = c.Ready(
                now=LATER,
                revision=state.revision,
                prompt="p",
                agent=PERSON,
                base_commit="b",
                heads=self.board.heads(code),
                abandoned=self.board.abandoned_before(code),
            )
            self.to_task(code, ready)
            return
        self.to_task(
            code,
            c.Dispatch(
                now=LATER,
                prompt="p",
                revision=self.board.tasks[code].revision,
                agent=self.board.tasks[code].agent,
                project="",
                repo_url="u",
                base_commit="b",
                heads=self.board.heads(code),
                abandoned=self.board.abandoned_before(code),
                plan_name="n",
                setup=(),
                env_allow=(),
            ),
        )

    def hand_out(self, code: str) -> None:
        newest = next(event for entity, event in reversed(self.log) if entity == code)
        assert isinstance(newest, e.TaskReadied)
        phase = self.board.plan.phase
        self.to_task(code, c.HandOut(phase=phase, readied=newest, project="", repo_url="u", plan_name="n"))

    def edit(self, code: str, agent: AgentSpec) -> None:
        spec = self.board.tasks[code].spec
        assert spec is not None
        assignee = next(name for name, known in self.spec.agents.items() if known == agent)
        self.to_task(code, c.Edit(spec=replace(spec, assignee=assignee, description="anew"), agent=agent))

    def start(self, code: str) -> None:
        self._executions += 1
        state = self.board.tasks[code]
        phase = self.board.plan.phase
        start = c.Start(phase=phase, dispatch=state.dispatch, runner="r", execution=f"x{self._executions}")
        deadline = NOW + timedelta(hours=1) if state.agent == PERSON else None
        self.to_task(code, replace(start, deadline=deadline))

    def end(self, code: str, kind: e.FailureKind | None) -> None:
        state, usage = self.board.tasks[code], e.Usage()
        if kind is None:
            result = e.Result(task_code=code, summary="s")
            commit = f"{code}.{state.lease}"
            self.to_task(
                code, c.Complete(lease=state.lease, base_commit="b", commit=commit, result=result, usage=usage)
            )
        else:
            phase = self.board.plan.phase
            self.to_task(code, c.Fail(now=NOW, phase=phase, lease=state.lease, kind=kind, message="m", usage=usage))

    def ask(self, code: str) -> None:
        state = self.board.tasks[code]
        phase, expires_at = self.board.plan.phase, NOW + timedelta(hours=1)
        asks = c.RequestApproval(
            now=NOW,
            phase=phase,
            lease=state.lease,
            approval=f"h{state.lease}",
            kind="tool",
            why="w",
            expires_at=expires_at,
            usage=e.Usage(),
        )
        self.to_task(code, asks)

    def look(self, code: str, draw: st.DrawFn) -> c.TaskCommand:
        """What whoever watches for a manual task's result may see."""
        lease = self.board.tasks[code].lease
        failed: c.TaskCommand = c.FailWatch(lease=lease, reason="the host is away", since=NOW)
        restored: c.TaskCommand = c.RestoreWatch(now=NOW + timedelta(minutes=1), lease=lease)
        return draw(st.sampled_from((failed, restored)))

    def answer(self, code: str, draw: st.DrawFn) -> None:
        asked = self.board.tasks[code].approval
        assert asked is not None
        late = c.Deny(approval=asked.approval, now=LATER)
        answers: tuple[c.TaskCommand, ...] = (
            c.Approve(now=NOW, approval=asked.approval),
            c.Deny(approval=asked.approval),
            late,
        )
        self.to_task(code, draw(st.sampled_from(answers)))

    def extend(self, code: str) -> None:
        """A task that comes before one that has not begun, after everything that this one waits for."""
        state, number = self.board.tasks[code], len(self.board.plan.added)
        if state.lease or state.status not in ("pending", "needs_attention") or state.spec is None:
            return
        new = TaskSpec(code=f"M{number}", name="m", assignee="sh", depends_on=state.spec.depends_on, resolves=code)
        self.to_plan(c.Extend(tasks=(new,), before=code, reason="r"))
        if new not in self.board.plan.added:
            return
        index = len(in_order(self.spec)) + number
        self.to_task(new.code, c.PlanTask(digest=self.board.plan.digest, index=index, spec=new, agent=SH))
        self.codes.append(new.code)

    def move(self, draw: st.DrawFn) -> None:
        """One step: mostly forward, sometimes a person's."""
        what = draw(st.sampled_from(["forward"] * 6 + ["person"] * 3 + ["plan", "edit", "extend"]))
        if what == "plan":
            plan_wishes: tuple[c.PlanCommand, ...] = (c.Pause(), c.Resume(), c.Resume(), c.CancelPlan())
            self.to_plan(draw(st.sampled_from(plan_wishes)))
            return
        code = draw(st.sampled_from(self.codes))
        if what == "extend":
            self.extend(code)
            return
        if what == "edit":
            self.edit(code, draw(st.sampled_from(list(self.spec.agents.values()))))
            return
        if what == "person":
            cancel = c.CancelTask(phase=self.board.plan.phase)
            wishes: tuple[c.TaskCommand, ...] = (c.MarkComplete(), c.Abandon(), c.Redispatch(), cancel)
            self.to_task(code, draw(st.sampled_from(wishes)))
            return
        match self.board.tasks[code].status:
            case "readied":
                self.hand_out(code)
            case "queued" if self.board.tasks[code].agent == PERSON and draw(st.booleans()):
                self.to_task(code, c.MarkComplete())
            case "queued":
                self.start(code)
            case "awaiting_approval":
                self.answer(code, draw)
            case "running" if self.board.tasks[code].agent == PERSON and draw(st.booleans()):
                self.to_task(code, self.look(code, draw))
            case "running" if draw(st.sampled_from([False, False, False, True])):
                self.ask(code)
            case "running" | "cancelling":
                self.end(code, draw(st.sampled_from([None, None, None, "unavailable", "agent_error"])))
            case _ if draw(st.booleans()):
                self.board.wake(LATER)
                for other in self.board.take_ready():
                    self.dispatch(other)
            case _:
                for other in self.board.reopening():
                    self.board.reopen(other)


def by_hand(state: TaskState) -> bool:
    return state.status in ("queued", "running") and state.agent == PERSON


@st.composite
def games(draw: st.DrawFn) -> Game:
    game = Game(draw(plan_specs()))
    game.finalize()
    for _ in range(draw(st.integers(0, 40))):
        try:
            game.move(draw)
        except c.Refused:
            continue
    return game


# What the answers mean, without counters --------------------------------------------------------------------------


def depends_on(board: Board, code: str) -> tuple[str, ...]:
    spec = board.tasks[code].spec
    assert spec is not None
    return (*spec.depends_on, *board.plan.also_before.get(code, ()))


def ancestors(board: Board, code: str) -> set[str]:
    found: set[str] = set()
    for predecessor in depends_on(board, code):
        found |= {predecessor} | ancestors(board, predecessor)
    return found


def clear(board: Board, code: str) -> bool:
    state = board.tasks[code]
    if state.status == "completed" and state.commit:
        return True
    given_up = state.status == "completed" or (state.status == "abandoned" and not state.reopening)
    return given_up and all(clear(board, p) for p in depends_on(board, code))


def blockers(board: Board, code: str) -> set[str]:
    found: set[str] = set()
    for predecessor in depends_on(board, code):
        if clear(board, predecessor):
            continue
        found |= blockers(board, predecessor) if board.tasks[predecessor].satisfied else {predecessor}
    return found


def ready(board: Board, code: str) -> bool:
    state = board.tasks[code]
    return state.status == "pending" and all(clear(board, p) for p in depends_on(board, code))


def folded(game: Game) -> Board:
    board = Board()
    for seq, (entity, event) in enumerate(game.log, 1):
        board.apply(entity, event, seq)
    return board


@given(games())
def test_readiness_is_what_it_is_said_to_be(game: Game) -> None:
    board = game.board
    scratch = folded(game)
    for one in (board, scratch):
        assert {code for code in one.codes if not one.missing(code)} == {
            code for code in one.codes if all(clear(one, p) for p in depends_on(one, code))
        }
        for code in one.codes:
            assert set(one.missing(code)) == blockers(one, code)
            assert len(one.missing(code)) == len(set(one.missing(code)))
    assert set(scratch._ready) | set(scratch._ready_without_slot) == {
        code for code in scratch.codes if ready(scratch, code)
    }
    assert all(scratch.tasks[code].agent == PERSON for code in scratch._ready_without_slot)
    assert not any(scratch.tasks[code].agent == PERSON for code in scratch._ready)
    assert set(board._ready) | set(board._claimed) >= set(scratch._ready)


@given(games())
def test_what_was_kept_up_to_date_equals_what_is_folded_from_scratch(game: Game) -> None:
    board, scratch = game.board, folded(game)
    for name in ("plan", "plan_seq", "tasks", "seqs", "_codes", "_missing", "_clear", "_ancestors", "_successors"):
        assert getattr(board, name) == getattr(scratch, name), name
    assert +board.counts == +scratch.counts
    assert set(board.reopening()) == set(scratch.reopening())
    assert (board.settled, board.standing()) == (scratch.settled, scratch.standing())
    waiting = [(at, code) for code, s in board.tasks.items() if (at := timer(s)) is not None]
    assert {(at, code) for at, code in waiting if code not in board._due} == set(board.timers())
    assert sorted(waiting) == scratch.timers()
    late = [board.tasks[code] for code in board.expired()]
    assert all(s.status == "awaiting_approval" or (s.status == "running" and s.is_manual) for s in late)


@given(games())
def test_counters_are_what_a_recount_gives(game: Game) -> None:
    board = game.board
    counted = Counter(state.status for state in board.tasks.values())
    assert +board.counts == counted
    in_flight = {code for code, s in board.tasks.items() if s.status in IN_FLIGHT and not by_hand(s)}
    assert board.free_slots() == game.max_parallel - len(in_flight | set(board._claimed))
    ended = all(s.status in ("completed", "cancelled", "abandoned") for s in board.tasks.values())
    assert board.settled == ended
    assert len(in_flight) <= game.max_parallel


@given(games())
def test_a_standing_says_whether_anything_can_go_on_without_a_person(game: Game) -> None:
    board = game.board
    status = board.plan.status
    if status not in ("active", "paused"):
        assert board.standing() == status
        return
    moving = any(
        (s.status in ("queued", "running", "cancelling", "retry_wait") and not by_hand(s))
        or ready(board, code)
        or (s.reopening and all(clear(board, p) for p in depends_on(board, code)))
        for code, s in board.tasks.items()
    )
    stuck = not moving and any(s.status == "needs_attention" for s in board.tasks.values())
    waiting = not moving and any(
        s.status in ("readied", "awaiting_approval") or by_hand(s) for s in board.tasks.values()
    )
    going = "paused" if status == "paused" else "waiting" if waiting else "running"
    assert board.standing() == ("needs_attention" if stuck else going)


@given(games())
@settings(max_examples=200)
def test_heads_are_those_of_all_completed_ancestors_that_no_other_one_contains(game: Game) -> None:
    board = game.board
    order = {code: place for place, code in enumerate(board.codes)}
    for code in board.codes:
        if any(not clear(board, p) for p in depends_on(board, code)):
            continue
        done = {a for a in ancestors(board, code) if board.tasks[a].status == "completed" and board.tasks[a].commit}
        outermost = {a for a in done if not any(a in ancestors(board, other) for other in done)}
        expected = tuple(e.Head(a, board.tasks[a].commit) for a in sorted(outermost, key=order.__getitem__))
        assert board.heads(code) == expected
        for abandoned in board.abandoned_before(code):
            assert board.tasks[abandoned].status == "abandoned" and abandoned in ancestors(board, code)
        direct = {p for p in depends_on(board, code) if board.tasks[p].status == "abandoned"}
        assert direct <= set(board.abandoned_before(code))


@given(games())
def test_who_rests_on_an_abandoned_task_names_it(game: Game) -> None:
    """The two directions of one relation: what a dispatch lists, and whom a reopening recalls."""
    board = game.board
    for code, state in board.tasks.items():
        if state.status != "abandoned":
            continue
        for other in board.codes:
            if not board.missing(other) and code in board.abandoned_before(other):
                assert other in set(board.resting_on(code))


@given(games())
def test_no_more_are_taken_than_may_run_and_none_twice(game: Game) -> None:
    board = game.board
    board.wake(LATER)
    free = max(0, board.free_slots())
    taken = board.take_ready()
    assert len([code for code in taken if board.tasks[code].agent != PERSON]) <= free and len(set(taken)) == len(taken)
    if board.plan.status != "active":
        assert taken == []
    assert not set(taken) & set(board.take_ready())


# The budget -----------------------------------------------------------------------------------------------------------

CLAUDE = AgentSpec(sdk_type="claude", model="m")


def costly(*budgets_usd: float, plan_usd: float) -> Game:
    tasks = tuple(
        TaskSpec(code=f"T{i}", name="n", assignee="claude", budget_usd=usd) for i, usd in enumerate(budgets_usd)
    )
    game = Game(PlanSpec(name="n", tasks=tasks, agents={"claude": CLAUDE}, budget_usd=plan_usd))
    game.finalize()
    return game


def end_at(game: Game, code: str, cost_usd: float) -> None:
    game.start(code)
    result, usage = e.Result(task_code=code, summary="s"), e.Usage(cost_usd=cost_usd)
    lease = game.board.tasks[code].lease
    game.to_task(code, c.Complete(lease=lease, base_commit="b", commit=code, result=result, usage=usage))


def test_what_is_in_flight_may_never_cost_more_than_the_plans_budget_leaves() -> None:
    game = costly(4, 4, 4, plan_usd=10)
    taken = game.board.take_ready()
    assert taken == ["T0", "T1"]
    assert game.board.over_budget() == ""
    for code in taken:
        game.dispatch(code)
    assert game.board.take_ready() == []
    end_at(game, "T0", 1.0)
    assert game.board.take_ready() == ["T2"]  # 1 spent, 4 reserved for T1: 4 are left of 10, and one cheaper
    assert game.board.take_ready() == []


def test_a_plan_whose_budget_is_spent_says_so_and_goes_on_with_a_larger_one() -> None:
    game = costly(4, 4, plan_usd=5)
    assert game.board.take_ready() == ["T0"]
    game.dispatch("T0")
    end_at(game, "T0", 2.5)
    assert game.board.take_ready() == []
    assert "2.50 are spent and T1 may cost 4" in game.board.over_budget()
    game.to_plan(c.Pause(reason="budget"))
    game.to_plan(c.Resume(budget_usd=6.5))
    assert game.board.over_budget() == ""
    assert game.board.take_ready() == ["T1"]


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=8), st.floats(0.01, 30), st.data())
def test_no_order_of_ends_lets_a_plan_commit_more_than_its_budget(
    budgets: list[float], plan_usd: float, data: st.DataObject
) -> None:
    game = costly(*budgets, plan_usd=plan_usd)
    for _ in range(2 * len(budgets)):
        for code in game.board.take_ready():
            game.dispatch(code)
        tasks = game.board.tasks.values()
        queued = [s for s in tasks if s.status == "queued" and s.spec and s.spec.code != DELIVER]
        reserved_usd = sum(s.spec.budget_usd for s in queued if s.spec)
        assert sum(s.usage.cost_usd for s in tasks) + reserved_usd <= plan_usd + 1e-5
        if not queued:
            ended = all(s.status == "completed" for s in tasks if s.spec and s.spec.code != DELIVER)
            assert ended or game.board.over_budget()
            return
        spec = data.draw(st.sampled_from(queued)).spec
        assert spec is not None
        end_at(game, spec.code, data.draw(st.floats(0, spec.budget_usd)))


# The order ------------------------------------------------------------------------------------------------------------


@given(plan_specs(12))
def test_the_order_is_topological_and_delivering_comes_last_behind_all(spec: PlanSpec) -> None:
    ordered = in_order(spec)
    place = {t.code: i for i, t in enumerate(ordered)}
    assert sorted(place) == sorted([*(t.code for t in spec.tasks), DELIVER])
    for t in ordered:
        assert all(place[p] < place[t.code] for p in t.depends_on)
    needed = {p for t in spec.tasks for p in t.depends_on}
    assert ordered[-1].code == DELIVER
    assert set(ordered[-1].depends_on) == {t.code for t in spec.tasks} - needed


@given(plan_specs(12))
def test_tasks_that_may_run_at_the_same_time_stay_in_the_authors_order(spec: PlanSpec) -> None:
    by_code = {t.code: t for t in spec.tasks}

    def depth(code: str) -> int:
        return max((depth(p) + 1 for p in by_code[code].depends_on), default=0)

    expected = sorted(by_code, key=depth)  # stable: within a depth the author's order
    assert [t.code for t in in_order(spec)][:-1] == expected


# Cost -----------------------------------------------------------------------------------------------------------------


class CountingBoard(Board):
    """Counts the tasks that it looks at."""

    steps = 0

    def _list(self, code: str) -> None:
        self.steps += 1
        super()._list(code)

    def _is_clear(self, code: str) -> bool:
        self.steps += 1
        return super()._is_clear(code)


def steps_to_the_end(width: int, layers: int) -> float:
    """Steps per event of a layered plan from its first dispatch to its end; every task has three predecessors."""
    tasks = tuple(
        TaskSpec(
            code=f"L{layer}-{i}",
            name="n",
            assignee="sh",
            depends_on=tuple(f"L{layer - 1}-{(i + k) % width}" for k in range(3)) if layer else (),
        )
        for layer in range(layers)
        for i in range(width)
    )
    board = CountingBoard()
    game = Game(PlanSpec(name="n", tasks=tasks, agents={"sh": SH}, max_parallel=1000), board)
    game.finalize()
    board.steps, events = 0, len(game.log)
    while taken := board.take_ready():
        for code in taken:
            game.dispatch(code)
            game.start(code)
            game.end(code, None)
    assert +board.counts == {"completed": width * layers + 1}
    return board.steps / (len(game.log) - events)


def test_an_event_costs_no_more_in_a_large_plan_than_in_a_small_one() -> None:
    assert steps_to_the_end(width=50, layers=20) <= 1.1 * steps_to_the_end(width=10, layers=5)


# Examples, each of something that once was wrong ----------------------------------------------------------------------


def chain(*codes: str) -> Game:
    tasks = tuple(
        TaskSpec(code=code, name=code, assignee="sh", depends_on=codes[place - 1 : place] if place else ())
        for place, code in enumerate(codes)
    )
    game = Game(PlanSpec(name="n", tasks=tasks, agents={"sh": SH}))
    game.finalize()
    return game


def test_an_abandoned_middle_does_not_let_its_successor_overtake_what_came_before() -> None:
    game = chain("A", "M", "X")
    game.to_task("M", c.Abandon())
    assert game.board.take_ready() == ["A"]
    assert game.board.missing("X") == ["A"]
    game.dispatch("A")
    game.start("A")
    game.end("A", None)
    assert game.board.take_ready() == ["X"]
    assert game.board.heads("X") == (e.Head("A", "A.1"),)
    assert game.board.abandoned_before("X") == ("M",)


def test_a_middle_marked_complete_early_stands_for_what_comes_before_it() -> None:
    game = chain("A", "M", "X")
    game.to_task("M", c.MarkComplete())
    game.to_task("A", c.Abandon())
    assert game.board.take_ready() == ["X"]
    assert game.board.abandoned_before("X") == ("A",)
    assert list(game.board.resting_on("A")) == ["M", "X"]


def test_half_a_plan_is_not_shown() -> None:
    spec = PlanSpec(name="n", tasks=(TaskSpec(code="A", name="A", assignee="sh"),), agents={"sh": SH})
    game = Game(spec)
    task = in_order(spec)[0]
    game.to_task("A", c.PlanTask(digest=game.board.plan.digest, index=0, spec=task, agent=SH))
    assert (game.board.visible, game.board.codes, game.board.take_ready()) == (False, [], [])
    assert game.board.standing() == "running"
