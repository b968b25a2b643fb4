//! Checkpoints are signed in a chain and remembered, in the state and in the token.

use super::super::state::leave_order;
use super::*;
use crate::token::fault::{FaultToken, Mishap, Times, Verb};

const TRAIL: &str = "0123456789abcdef";
const START: Mark = Mark { number: 0, covers: 0, head: [0; 32] };

struct Bench {
    place: tempfile::TempDir,
    token: FaultToken,
}

impl Bench {
    fn new() -> Self {
        let token = FaultToken::new();
        token.create_signer(1).unwrap();
        Self { place: tempfile::tempdir().unwrap(), token }
    }

    fn open(&self, accepts: bool) -> History {
        let state = State::open(&self.place.path().join("state")).unwrap();
        History::open(state, accepts).unwrap()
    }

    fn order(&self, newest: Mark) {
        let order =
            Accept { trail: TRAIL.to_owned(), newest, store: true, at: String::new(), by: 0 };
        let bytes = serde_json::to_vec(&order).unwrap();
        leave_order(&self.place.path().join("state"), ACCEPT, &bytes).unwrap();
    }

    fn sign(&self, history: &History, covers: u64, before: Mark) -> Result<Checkpoint, Fault> {
        self.sign_as(history, covers, before, false)
    }

    fn sign_as(
        &self,
        history: &History,
        covers: u64,
        before: Mark,
        closes: bool,
    ) -> Result<Checkpoint, Fault> {
        let head = [covers as u8; 32];
        let wanted = ToSign { trail: TRAIL, covers, head, before, closes, stored: true };
        match history.sign(&self.token, 1, &wanted)? {
            Reply::Checkpoint { checkpoint, .. } => Ok(checkpoint),
            _ => panic!("another reply"),
        }
    }
}

fn newest(history: &History) -> Newest {
    match history.newest() {
        Reply::Newest(newest) => *newest,
        _ => panic!("another reply"),
    }
}

fn is_refused<T>(result: Result<T, Fault>) -> bool {
    matches!(result, Err(Fault::NotNewest(_)))
}

#[test]
fn numbers_follow_each_other_over_a_restart_and_nothing_else_is_signed() {
    let bench = Bench::new();
    let history = bench.open(false);
    let first = bench.sign(&history, 10, START).unwrap();
    assert_eq!((first.mark.number, first.before), (1, START));
    assert_eq!(bench.sign(&history, 10, START).unwrap(), first, "an answer that was lost");
    for (covers, before) in [
        (11, START),
        (20, Mark { covers: 9, ..first.mark }),
        (20, Mark { number: 2, ..first.mark }),
        (20, Mark { head: [1; 32], ..first.mark }),
    ] {
        assert!(is_refused(bench.sign(&history, covers, before)), "{covers} {before}");
    }
    assert!(bench.sign(&history, 10, first.mark).is_err(), "it covers no more");
    drop(history);
    let history = bench.open(false);
    assert_eq!(newest(&history).known.unwrap().signed.unwrap(), first);
    assert_eq!(bench.sign(&history, 20, first.mark).unwrap().mark.number, 2);
    assert!(is_refused(bench.sign(&history, 30, first.mark)));
}

#[test]
fn what_cannot_be_remembered_is_not_signed() {
    let bench = Bench::new();
    let history = bench.open(false);
    let first = bench.sign(&history, 10, START).unwrap();
    let blocked = bench.place.path().join("state/checkpoints.new");
    std::fs::create_dir(&blocked).unwrap();
    assert!(matches!(bench.sign(&history, 20, first.mark), Err(Fault::State(_))));
    std::fs::remove_dir(&blocked).unwrap();
    assert_eq!(newest(&history).known.unwrap().mark, first.mark);
    assert_eq!(bench.sign(&history, 20, first.mark).unwrap().mark.number, 2);
    bench.token.plan(Verb::Sign, Mishap::Unavailable, Times::Next(1));
    let second = newest(&history).known.unwrap().mark;
    assert!(bench.sign(&history, 30, second).is_err());
    assert_eq!(newest(&history).known.unwrap().mark, second);
}

#[test]
fn only_root_s_order_or_the_configuration_takes_an_older_history_and_once() {
    let bench = Bench::new();
    let history = bench.open(false);
    let first = bench.sign(&history, 10, START).unwrap().mark;
    let second = bench.sign(&history, 20, first).unwrap().mark;
    assert!(is_refused(history.begin(TRAIL, first, false, None)));
    bench.order(second);
    assert!(is_refused(history.begin(TRAIL, first, false, None)), "another one was meant");
    bench.order(first);
    let begun = history.begin(TRAIL, first, false, None).unwrap();
    let replaced = |reply: &Reply| match reply {
        Reply::Begun(begun) => begun.replaced.as_ref().map(|replaced| replaced.mark),
        _ => panic!("another reply"),
    };
    assert_eq!(replaced(&begun), Some(second));
    let third = bench.sign(&history, 15, first).unwrap();
    assert_eq!(third.mark.number, 3, "no number is used twice");
    assert_eq!(replaced(&history.begin(TRAIL, third.mark, false, None).unwrap()), None);
    assert!(is_refused(history.begin(TRAIL, first, false, None)));
    drop(history);
    let history = bench.open(true);
    history.begin(TRAIL, first, false, None).unwrap();
    assert!(is_refused(history.begin(TRAIL, START, false, None)), "once in a process");
}

#[test]
fn an_order_replaces_what_the_token_alone_remembers() {
    let bench = Bench::new();
    let history = bench.open(false);
    let first = bench.sign(&history, 10, START).unwrap().mark;
    let second = bench.sign(&history, 20, first).unwrap().mark;
    drop(history);
    std::fs::remove_file(bench.place.path().join("state/checkpoints.json")).unwrap();
    bench.order(first);
    let history = bench.open(false);
    history.begin(TRAIL, first, false, None).unwrap();
    history.compare_with(&bench.token).unwrap();
    let Reply::Begun(Begun { replaced, .. }) = history.begin(TRAIL, first, false, None).unwrap()
    else {
        panic!("another reply")
    };
    assert_eq!(replaced.map(|replaced| replaced.mark), Some(second));
    assert!(!newest(&history).state_lost);
    assert_eq!(bench.sign(&history, 15, first).unwrap().mark.number, 3);
}

#[test]
fn nothing_stands_behind_an_orderly_end() {
    let bench = Bench::new();
    let history = bench.open(false);
    let last = bench.sign_as(&history, 10, START, true).unwrap().mark;
    assert!(newest(&history).closed);
    assert!(is_refused(history.begin(TRAIL, last, true, None)));
    history.begin(TRAIL, last, false, None).unwrap();
    assert!(!newest(&history).closed);
    history.begin(TRAIL, last, true, None).unwrap();
}

#[test]
fn the_token_is_believed_where_the_state_is_older_or_gone() {
    let bench = Bench::new();
    let history = bench.open(false);
    let first = bench.sign(&history, 10, START).unwrap().mark;
    let file = bench.place.path().join("state/checkpoints.json");
    let older = std::fs::read(&file).unwrap();
    let second = bench.sign(&history, 20, first).unwrap().mark;
    drop(history);
    for put_back in [Some(older), None] {
        match put_back {
            Some(older) => std::fs::write(&file, older).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        let history = bench.open(false);
        history.compare_with(&bench.token).unwrap();
        let newest = newest(&history);
        assert!(newest.state_lost && newest.with_token);
        assert_eq!(newest.known.unwrap().mark, second);
        assert!(is_refused(bench.sign(&history, 15, first)));
    }
    let history = bench.open(false);
    history.compare_with(&bench.token).unwrap();
    assert!(!newest(&history).state_lost, "the state has it again");
    assert_eq!(bench.sign(&history, 30, second).unwrap().mark.number, 3);
}

#[test]
fn a_new_signing_key_starts_again_and_an_old_log_is_believed_once() {
    let bench = Bench::new();
    let history = bench.open(false);
    let first = bench.sign(&history, 10, START).unwrap().mark;
    history.start_again(&bench.token).unwrap();
    assert_eq!(bench.token.remembered().unwrap(), Vec::<Vec<u8>>::new());
    let old = Mark { number: 0, covers: 700, head: [5; 32] };
    let wanted = ToSign {
        trail: TRAIL,
        covers: 710,
        head: [6; 32],
        before: old,
        closes: false,
        stored: true,
    };
    let signed = history.sign(&bench.token, 1, &wanted).unwrap();
    let Reply::Checkpoint { checkpoint, adopted } = signed else { panic!("another reply") };
    assert!(adopted && checkpoint.mark.number == 1 && checkpoint.before == old);
    assert!(is_refused(bench.sign(&history, 20, first)));
}

#[test]
fn an_order_is_removed_once_it_was_followed_and_not_before() {
    let bench = Bench::new();
    let history = bench.open(false);
    let first = bench.sign(&history, 10, START).unwrap().mark;
    let second = bench.sign(&history, 20, first).unwrap().mark;
    let (state, order) =
        (bench.place.path().join("state"), bench.place.path().join("state/accept.json"));
    bench.order(first);
    let blocked = state.join("checkpoints.new");
    std::fs::create_dir(&blocked).unwrap();
    assert!(matches!(history.begin(TRAIL, first, false, None), Err(Fault::State(_))));
    assert!(order.exists(), "nothing was accepted");
    std::fs::remove_dir(&blocked).unwrap();
    assert!(
        is_refused(history.begin(TRAIL, START, false, None)) && order.exists(),
        "another is meant"
    );
    let order_again = std::fs::read(&order).unwrap();
    history.begin(TRAIL, first, false, None).unwrap();
    assert!(!order.exists());
    // One that could not be removed is not followed again.
    let third = bench.sign(&history, 30, first).unwrap().mark;
    assert!(is_refused(history.begin(TRAIL, first, false, None)));
    leave_order(&state, ACCEPT, &order_again).unwrap();
    assert!(is_refused(history.begin(TRAIL, first, false, None)));
    // What was ordered before a checkpoint is over with it.
    bench.order(second);
    bench.sign(&history, 40, third).unwrap();
    assert!(!order.exists());
    // A file that is being prepared stays.
    leave_order(&state, ACCEPT, b"").unwrap();
    let fourth = newest(&history).known.unwrap().mark;
    bench.sign(&history, 50, fourth).unwrap();
    assert!(order.exists());
}

#[test]
fn how_far_the_store_must_reach_is_remembered_until_an_operator_accepts_another() {
    let bench = Bench::new();
    let history = bench.open(false);
    let stored = |history: &History, newest: Mark| match history.begin(TRAIL, newest, false, None) {
        Ok(Reply::Begun(begun)) => (begun.stored, begun.replaced.map(|it| it.mark)),
        _ => panic!("another reply"),
    };
    assert_eq!(stored(&history, START), (0, None));
    let first = bench.sign(&history, 10, START).unwrap().mark;
    assert_eq!(stored(&history, first), (10, None));
    let wanted = ToSign {
        trail: TRAIL,
        covers: 20,
        head: [2; 32],
        before: first,
        closes: false,
        stored: false,
    };
    history.sign(&bench.token, 1, &wanted).unwrap();
    let second = newest(&history).known.unwrap().mark;
    drop(history);
    let history = bench.open(false);
    assert_eq!(stored(&history, second), (10, None), "the store did not have the later one");
    bench.order(second);
    assert_eq!(stored(&history, second), (0, Some(second)), "root's order is for this very store");
    assert_eq!(stored(&history, second), (0, Some(second)));
    let third = bench.sign(&history, 30, second).unwrap().mark;
    assert_eq!(stored(&history, third), (30, None));
    drop(history);
    std::fs::remove_file(bench.place.path().join("state/checkpoints.json")).unwrap();
    let history = bench.open(false);
    history.compare_with(&bench.token).unwrap();
    assert_eq!(stored(&history, third), (30, None), "as the token remembers");
}

#[test]
fn what_is_remembered_can_be_read_while_the_token_signs() {
    let bench = Bench::new();
    let history = bench.open(false);
    let first = bench.sign(&history, 10, START).unwrap().mark;
    bench.token.plan(Verb::Sign, Mishap::Slow(std::time::Duration::from_secs(2)), Times::Next(1));
    std::thread::scope(|scope| {
        let signing = scope.spawn(|| bench.sign(&history, 20, first).unwrap());
        std::thread::sleep(std::time::Duration::from_millis(200));
        let asked = std::time::Instant::now();
        assert_eq!(newest(&history).known.unwrap().mark, first);
        assert!(asked.elapsed() < std::time::Duration::from_secs(1) && !signing.is_finished());
    });
    assert_eq!(newest(&history).known.unwrap().mark.covers, 20);
}

/// Writes the state's file with a digest of its own, as whoever has the directory can.
fn forge(bench: &Bench, memory: &Remembered) {
    let state = State::open(&bench.place.path().join("state")).unwrap();
    let kept = state.load::<Remembered>().unwrap();
    kept.change(|now| {
        *now = memory.clone();
        Ok::<_, StateError>(())
    })
    .unwrap();
}

#[test]
fn a_state_that_was_edited_is_not_believed_against_the_token() {
    let bench = Bench::new();
    let history = bench.open(false);
    let first = bench.sign(&history, 10, START).unwrap();
    let older = history.kept.get();
    let second = bench.sign(&history, 20, first.mark).unwrap().mark;
    let honest = history.kept.get();
    drop(history);
    let unsigned = |known: &Remembered| {
        let newest = known.newest.clone().map(|known| Known { signed: None, ..known });
        Remembered { newest, ..known.clone() }
    };
    let mut later = honest.clone();
    later.highest = 3;
    later.newest.as_mut().unwrap().mark = Mark { number: 3, covers: 30, head: [3; 32] };
    let mut claimed = later.clone();
    let mut own = first.clone();
    own.mark = claimed.newest.as_ref().unwrap().mark;
    claimed.newest.as_mut().unwrap().signed = Some(own);
    for (what, forged) in [
        ("an older one with the highest number", Remembered { highest: 2, ..older.clone() }),
        ("the same without a signature", Remembered { highest: 2, ..unsigned(&older) }),
        ("an older one", older.clone()),
        ("none", Remembered { newest: None, ..honest.clone() }),
        ("none, as if the key was new", Remembered { is_new: true, ..Remembered::default() }),
        ("no further number", Remembered { highest: u64::MAX, ..honest.clone() }),
        ("few further numbers", Remembered { highest: 1 << 62, ..honest.clone() }),
        ("a later one that was never signed", later),
        ("a later one with another one's signature", claimed),
    ] {
        forge(&bench, &forged);
        let history = bench.open(false);
        history.compare_with(&bench.token).unwrap();
        let found = newest(&history);
        assert_eq!(found.known.unwrap().mark, second, "{what}");
        assert!(found.state_lost, "{what}");
        assert_eq!(history.kept.get().highest, 2, "{what}");
        assert!(is_refused(bench.sign(&history, 30, first.mark)), "{what}");
    }
    let history = bench.open(false);
    history.compare_with(&bench.token).unwrap();
    assert_eq!(bench.sign(&history, 30, second).unwrap().mark.number, 3);
}

#[test]
fn a_forged_order_still_names_what_it_replaces() {
    let bench = Bench::new();
    let history = bench.open(false);
    let first = bench.sign(&history, 10, START).unwrap();
    let older = history.kept.get();
    let second = bench.sign(&history, 20, first.mark).unwrap().mark;
    drop(history);
    forge(&bench, &Remembered { highest: 1 << 62, ordered: true, ..older });
    let history = bench.open(false);
    history.compare_with(&bench.token).unwrap();
    let Ok(Reply::Begun(begun)) = history.begin(TRAIL, first.mark, false, None) else {
        panic!("another reply")
    };
    assert_eq!(begun.replaced.map(|replaced| replaced.mark), Some(second));
    assert_eq!(bench.sign(&history, 15, first.mark).unwrap().mark.number, 3);
}

#[test]
fn a_crash_between_the_two_writes_is_no_finding_and_two_steps_are_not_taken() {
    let bench = Bench::new();
    let history = bench.open(false);
    let first = bench.sign(&history, 10, START).unwrap().mark;
    bench.token.plan(Verb::Remember, Mishap::Operator, Times::Always);
    let second = bench.sign(&history, 20, first).unwrap().mark;
    let refused = bench.sign(&history, 30, second);
    assert!(matches!(refused, Err(Fault::State(_))), "the token has not the one before");
    assert!(history.checks().iter().any(|check| check.verdict == Verdict::Fail));
    drop(history);
    let history = bench.open(false);
    history.compare_with(&bench.token).unwrap();
    let found = newest(&history);
    assert_eq!((found.known.unwrap().mark, found.state_lost), (second, false));
    history.remember_in(&bench.token);
    assert!(bench.sign(&history, 30, second).is_err());
    bench.token.heal();
    assert_eq!(bench.sign(&history, 30, second).unwrap().mark.number, 3);
}

#[test]
fn a_line_that_is_noted_must_be_there_until_it_is_signed() {
    let bench = Bench::new();
    let history = bench.open(false);
    let noted = |covers: u64| Noted { covers, head: [covers as u8; 32] };
    assert!(is_refused(history.note(TRAIL, noted(5), false)), "nothing was signed yet");
    let first = bench.sign(&history, 10, START).unwrap().mark;
    assert!(is_refused(history.note("fedcba9876543210", noted(15), false)), "another log");
    assert!(is_refused(history.note(TRAIL, noted(10), false)), "it is signed");
    history.note(TRAIL, noted(15), false).unwrap();
    assert!(is_refused(history.note(TRAIL, noted(14), false)));
    assert!(is_refused(history.note(TRAIL, Noted { head: [0; 32], ..noted(15) }, false)));
    history.note(TRAIL, noted(20), true).unwrap();
    history.note(TRAIL, noted(20), true).unwrap();
    assert!(is_refused(history.note(TRAIL, noted(21), true)), "it was closed");
    drop(history);
    let history = bench.open(false);
    assert_eq!(newest(&history).noted, Some(noted(20)));
    for (behind, holds) in [(false, None), (false, Some(noted(15))), (true, Some(noted(20)))] {
        assert!(is_refused(history.begin(TRAIL, first, behind, holds)), "{behind} {holds:?}");
    }
    history.begin(TRAIL, first, false, Some(noted(20))).unwrap();
    assert!(is_refused(history.begin(TRAIL, first, false, None)), "it counts until it is signed");
    assert!(is_refused(bench.sign(&history, 19, first)));
    bench.sign(&history, 25, first).unwrap();
    assert_eq!(newest(&history).noted, None);
    let second = newest(&history).known.unwrap().mark;
    history.note(TRAIL, noted(30), false).unwrap();
    bench.order(second);
    let Ok(Reply::Begun(begun)) = history.begin(TRAIL, second, false, None) else {
        panic!("root's order takes it away")
    };
    assert_eq!(begun.replaced.map(|replaced| replaced.mark.covers), Some(30));
    assert_eq!(newest(&history).noted, None);
}

#[test]
fn a_lock_is_kept_in_the_token_until_it_ends() {
    let bench = Bench::new();
    let history = bench.open(false);
    let first = bench.sign(&history, 10, START).unwrap().mark;
    assert!(!history.compare_with(&bench.token).unwrap());
    history.remember_lock(&bench.token);
    bench.sign(&history, 20, first).unwrap();
    drop(history);
    let history = bench.open(false);
    assert!(history.compare_with(&bench.token).unwrap());
    assert!(!newest(&history).state_lost);
    let history = history.brief(true);
    history.remember_in(&bench.token);
    assert!(history.compare_with(&bench.token).unwrap(), "an offline command changes nothing");
    let history = history.brief(false);
    history.remember_in(&bench.token);
    assert!(!history.compare_with(&bench.token).unwrap());
}

#[test]
fn the_first_form_of_the_token_s_memory_is_read_and_replaced() {
    let bench = Bench::new();
    let history = bench.open(false);
    let first = bench.sign(&history, 10, START).unwrap().mark;
    let form = format!("strongroom checkpoint 1\n{TRAIL}\n{first}\n");
    bench.token.remember(Some(form.as_bytes())).unwrap();
    drop(history);
    let history = bench.open(false);
    assert!(!history.compare_with(&bench.token).unwrap());
    assert!(!newest(&history).state_lost);
    bench.sign(&history, 20, first).unwrap();
    let text = String::from_utf8(bench.token.remembered().unwrap().concat()).unwrap();
    assert!(text.starts_with("strongroom checkpoint 2\n") && text.ends_with("\n2\nopen\n"));
}
