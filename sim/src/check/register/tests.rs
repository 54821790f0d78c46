//! Stories of one register: `0..9 w5` writes 5, `r5` reads it, `r-` reads nothing, `c5>6` compares
//! and sets, `x5>6` was refused; `0..` had no answer.

use super::*;

fn parse(story: &str) -> Vec<Operation> {
    let lines = story.split([';', '\n']).map(str::trim).filter(|line| !line.is_empty());
    lines.map(parse_operation).collect()
}

fn parse_operation(line: &str) -> Operation {
    let (times, action) = line.split_once(' ').unwrap();
    let (begun, ended) = times.split_once("..").unwrap();
    let (what, values) = action.trim().split_at(1);
    let value = values.parse().ok();
    let action = match what {
        "r" => Action::Read(value),
        "w" => Action::Write(value.unwrap()),
        _ => {
            let (from, to) = values.split_once('>').unwrap();
            let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
            Action::CompareAndSet { from, to, worked: what == "c" }
        }
    };
    let ended = ended.parse().unwrap_or(u64::MAX);
    Operation { key: 1, begun: begun.parse().unwrap(), ended, action }
}

#[track_caller]
fn good(story: &str) {
    let report = check(&parse(story)).unwrap_or_else(|violation| panic!("{violation}"));
    assert!(report.undecided.is_empty(), "{story}");
}

/// `window` are the operations that the violation must name, by beginning.
#[track_caller]
fn bad(story: &str, window: &str) {
    let Err(violation) = check(&parse(story)) else { panic!("passed: {story}") };
    assert_eq!(violation.window, parse(window), "{story}\n{violation}");
}

#[test]
fn reads_show_the_last_write() {
    bad("0..1 w1; 2..3 r-", "0..1 w1; 2..3 r-");
    good("0..2 w1; 2..3 r-");
    bad("0..1 w1; 2..3 w2; 4..5 r1", "0..1 w1; 2..3 w2; 4..5 r1");
    good("0..1 w1; 2..4 w2; 4..5 r1");
    bad("0..1 r7", "0..1 r7");
    good("0..1 w7; 0..1 r7");
}

#[test]
fn a_value_that_is_gone_does_not_return() {
    bad("0..9 w1; 1..2 r1; 3..4 r-", "0..9 w1; 1..2 r1; 3..4 r-");
    good("0..9 w1; 1..2 r-; 3..4 r1");
    let flicker = "0..9 w1; 0..9 w2; 1..2 r1; 3..4 r2; 5..6 r1";
    bad(flicker, flicker);
    good("0..9 w1; 0..9 w2; 1..2 r1; 3..4 r2; 5..6 r2");
}

#[test]
fn compare_and_set_works_on_what_is_there() {
    bad("0..1 w1; 2..3 w2; 4..5 c1>3", "0..1 w1; 2..3 w2; 4..5 c1>3");
    good("0..1 w1; 2..4 w2; 4..5 c1>3");
    bad("0..1 w1; 2..9 c1>2; 2..9 c1>3", "0..1 w1; 2..9 c1>2; 2..9 c1>3");
    good("0..1 w1; 2..9 c1>2; 2..9 c2>3");
    bad("0..1 w1; 2..3 x1>2", "0..1 w1; 2..3 x1>2");
    good("0..2 w1; 2..3 x1>2");
    bad("0..2 w1; 2..3 x1>2; 4..5 r2", "4..5 r2");
    good("0..2 w1; 2..3 x1>2; 4..5 r1");
}

#[test]
fn without_an_answer_anything_may_have_happened_since() {
    good("0.. w1; 5..6 r-");
    good("0.. w1; 5..6 r-; 7..8 r1");
    bad("0.. w1; 5..6 r1; 7..8 r-", "0.. w1; 5..6 r1; 7..8 r-");
    bad("5.. w1; 2..3 r1", "2..3 r1");
    good("0..1 w1; 2.. c1>2; 3..4 r1; 5..6 r2");
    bad("0..1 w1; 2.. c1>2; 3..4 r2; 5..6 r1", "0..1 w1; 2.. c1>2; 3..4 r2; 5..6 r1");
    good("0.. r9");
    // Of two unanswered ones, the second was seen through a third.
    bad("0.. w1; 0.. c1>2; 3..4 c2>3; 5..6 r1", "0.. w1; 0.. c1>2; 3..4 c2>3; 5..6 r1");
    good("0.. w1; 0.. c1>2; 1..4 r1; 3..4 c2>3; 5..6 r3");
}

#[test]
fn a_refusal_may_be_all_that_shows_of_a_write() {
    bad("0..1 w1; 4..5 x1>2", "0..1 w1; 4..5 x1>2");
    good("0..1 w1; 3.. w9; 4..5 x1>2");
    bad("0..1 w1; 6.. w9; 4..5 x1>2", "0..1 w1; 4..5 x1>2");
    good("0..1 w1; 3.. c1>9; 4..5 x1>2");
    bad("0..1 w1; 3.. c7>9; 4..5 x1>2", "0..1 w1; 3.. c7>9; 4..5 x1>2");
    bad("0..1 w1; 3.. w9; 4..5 x1>2; 6..7 r1", "0..1 w1; 3.. w9; 4..5 x1>2; 6..7 r1");
    // Which of two writes came last, only the refusal tells.
    good("0..9 w1; 0..9 w2; 10..11 x1>5");
    good("0..9 w1; 0..9 w2; 10..11 x2>5");
    good("0..1 x3>5; 0..9 w3; 0..9 w1; 10..11 x1>6");
    bad("0..9 w1; 0..9 w2; 10..11 x1>5; 10..11 x2>6", "0..9 w1; 0..9 w2; 10..11 x1>5; 10..11 x2>6");
    // One write gets in the way once.
    let twice = "0..1 w1; 3.. w9; 4..5 x1>2; 6..7 w3; 8..9 x3>4";
    bad(twice, twice);
    good("0..1 w1; 3.. w9; 3.. w8; 4..5 x1>2; 6..7 w3; 8..9 x3>4");
}

#[test]
fn a_violation_names_the_key_and_few_operations() {
    let mut history = Vec::new();
    for n in 0..200 {
        let at = 10 * n;
        history.extend(parse(&format!("{at}..{} w{n}; {}..{} r{n}", at + 3, at + 4, at + 5)));
    }
    history.extend(parse("1007..1008 r99"));
    let violation = check(&history).unwrap_err();
    let text = "key 1: no order explains these operations\
                \n  990..993 write 99\n  1000..1003 write 100\n  1007..1008 read 99";
    assert_eq!(violation.to_string(), text);
    let twice = check(&parse("0..1 w1; 2.. c7>1")).unwrap_err();
    assert_eq!(twice.reason, "malformed history: a value is written twice");
    let text = "0..1 w1; 2..3 r-; 0.. c1>2; 4..5 x1>2";
    let lines: Vec<String> = parse(text).iter().map(Operation::to_string).collect();
    let expected = [
        "0..1 write 1",
        "2..3 read nothing",
        "0.. compare 1 and set 2, no answer",
        "4..5 compare 1 and set 2, refused",
    ];
    assert_eq!(lines, expected);
}

/// SplitMix64 (Steele et al., 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// A register that keeps its promises: `n_clients` of them, each with one operation after the
/// other, which takes effect at a moment of its own. `n_lost` answers to writes go missing.
fn run(seed: u64, n_operations: usize, n_clients: usize, mut n_lost: usize) -> Vec<Operation> {
    let mut random = Random(seed);
    let mut history: Vec<Operation> = Vec::new();
    // Each client's operation, and whether it has taken effect.
    let mut clients: Vec<Option<(Operation, bool)>> = vec![None; n_clients];
    // Lost ones that have yet to take effect.
    let mut afloat: Vec<Action> = Vec::new();
    let (mut register, mut now, mut n_values) = (None, 0, 0);
    while history.len() < n_operations {
        now += 1;
        if !afloat.is_empty() && random.percent(3) {
            let at = random.below(afloat.len() as u64) as usize;
            apply(&mut register, &mut afloat.swap_remove(at));
        }
        let client = random.below(n_clients as u64) as usize;
        match clients[client].take() {
            None => {
                n_values += 1;
                let guess = register.unwrap_or(0).saturating_sub(random.below(2));
                let action = match random.below(10) {
                    0..5 => Action::Read(None),
                    5..8 => Action::Write(n_values),
                    _ => Action::CompareAndSet { from: guess, to: n_values, worked: false },
                };
                let operation = Operation { key: 1, begun: now, ended: u64::MAX, action };
                clients[client] = Some((operation, false));
            }
            Some((operation, false))
                if n_lost > 0 && operation.action != Action::Read(None) && random.percent(5) =>
            {
                n_lost -= 1;
                afloat.push(operation.action);
                history.push(operation);
            }
            Some((mut operation, false)) => {
                apply(&mut register, &mut operation.action);
                clients[client] = Some((operation, true));
            }
            Some((mut operation, true)) => {
                operation.ended = now;
                history.push(operation);
            }
        }
    }
    history.extend(clients.into_iter().flatten().map(|(operation, _)| operation));
    history
}

fn apply(register: &mut Option<u64>, action: &mut Action) {
    match action {
        Action::Read(value) => *value = *register,
        Action::Write(value) => *register = Some(*value),
        Action::CompareAndSet { from, to, worked } => {
            *worked = *register == Some(*from);
            if *worked {
                *register = Some(*to);
            }
        }
    }
}

#[test]
fn a_register_that_keeps_its_promises_passes() {
    for seed in 0..300 {
        let history = run(seed, 200, 2 + seed as usize % 10, seed as usize % 20);
        let report = check(&history).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        assert!(report.undecided.is_empty(), "seed {seed}");
    }
}

#[test]
fn large_histories_are_judged_quickly() {
    for seed in 0..10 {
        let history = run(seed, 2_000, 10, 50);
        let report = check(&history).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        assert!(report.undecided.is_empty() && report.n_states < 20_000, "{report:?}");
    }
}

#[test]
fn a_search_that_is_too_long_says_so() {
    // The last write is refused after all, whichever it is.
    let crowd = |n: u64| {
        let lines = (1..=n).map(|value| format!("0..9 w{value}; 20..21 x{value}>{}", n + value));
        lines.collect::<Vec<_>>().join("; ")
    };
    assert_eq!(check(&parse(&crowd(3))).unwrap_err().window.len(), 6);
    assert_eq!(check(&parse(&crowd(24))).unwrap().undecided, [1]);
}

#[test]
fn a_stale_read_is_found_and_narrowed() {
    for seed in 0..100 {
        let mut history = run(seed, 1_000, 8, 20);
        let mut random = Random(seed);
        let last_begun = history.iter().map(|operation| operation.begun).max().unwrap();
        let writes: Vec<(u64, u64)> = history
            .iter()
            .filter_map(|operation| operation.written().map(|value| (operation.ended, value)))
            .collect();
        // A value that was surely overwritten long before the read began.
        let at = last_begun / 2 + random.below(last_begun / 3);
        let old = writes.iter().filter(|(ended, _)| *ended < at - 200).max().unwrap();
        let read = history
            .iter_mut()
            .filter(|operation| matches!(operation.action, Action::Read(_)))
            .find(|operation| operation.begun > at && operation.is_answered())
            .unwrap();
        read.action = Action::Read(Some(old.1));
        let read = *read;
        let violation = check(&history).unwrap_err();
        assert!(violation.window.contains(&read), "seed {seed}: {violation}");
        assert!(violation.window.len() <= 6, "seed {seed}: {violation}");
        assert_eq!(check(&violation.window).unwrap_err(), violation, "seed {seed}");
    }
}

/// Tries every order, and for unanswered operations every choice.
fn brute(operations: &[Operation], open: u32, register: Option<u64>) -> bool {
    let is_open = |at: &usize| open & 1 << at != 0;
    let needed = |at: &usize| operations[*at].is_answered();
    if !(0..operations.len()).filter(is_open).any(|at| needed(&at)) {
        return true;
    }
    (0..operations.len()).filter(is_open).any(|at| {
        let operation = &operations[at];
        let is_late = (0..operations.len())
            .filter(is_open)
            .any(|other| operations[other].ended < operation.begun);
        let mut next = register;
        let fits = match operation.action {
            Action::Read(value) => value == register || !operation.is_answered(),
            Action::Write(value) => {
                next = Some(value);
                true
            }
            Action::CompareAndSet { from, to, worked } => {
                let works = register == Some(from);
                if works {
                    next = Some(to);
                }
                works == worked || !operation.is_answered()
            }
        };
        !is_late && fits && brute(operations, open & !(1 << at), next)
    })
}

fn tiny(random: &mut Random) -> Vec<Operation> {
    let n = 2 + random.below(5);
    let mut history = Vec::new();
    for to in 1..=n {
        let begun = random.below(12);
        let is_lost = random.percent(25);
        let ended = if is_lost { u64::MAX } else { begun + random.below(8) };
        let some = random.below(n + 1);
        let action = match random.below(3) {
            0 => Action::Read(Some(some).filter(|value| *value > 0)),
            1 => Action::Write(to),
            _ => Action::CompareAndSet {
                from: if some == to { n + 1 } else { some },
                to,
                worked: random.percent(60),
            },
        };
        history.push(Operation { key: 1, begun, ended, action });
    }
    // Reads of what nobody writes are dull.
    let written: Vec<u64> = history.iter().filter_map(Operation::written).collect();
    for operation in &mut history {
        if let Action::Read(Some(value)) = &mut operation.action
            && !written.contains(value)
        {
            operation.action = Action::Read(written.first().copied());
        }
    }
    history
}

#[test]
fn tiny_histories_are_judged_as_by_brute_force() {
    let n_rounds = std::env::var("ROUNDS").map_or(50_000, |text| text.parse().unwrap());
    let mut random = Random(11);
    let mut n_good = 0;
    for _ in 0..n_rounds {
        let history = tiny(&mut random);
        let is_explained = brute(&history, (1 << history.len()) - 1, None);
        n_good += u64::from(is_explained);
        match check(&history) {
            Ok(report) => assert!(is_explained && report.undecided.is_empty(), "{history:#?}"),
            Err(violation) => {
                assert!(!is_explained, "{history:#?}\n{violation}");
                let window = &violation.window;
                assert!(!brute(window, (1 << window.len()) - 1, None), "{history:#?}\n{violation}");
            }
        }
    }
    assert!(n_good > n_rounds / 10 && n_good < n_rounds * 9 / 10, "{n_good} of {n_rounds} good");
}
