//! The trail after a crash, on a disk without room, and against the clock.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::tools::{Bench, deed, intent, kinds, lines, segments, write_lines};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use strongroom::audit::{AuditError, Event, EventNote, Expectations, OnBreak, Outcome, Settings};

fn append(bench: &Bench, bytes: &[u8]) {
    let path = segments(bench).pop().unwrap();
    fs::File::options().append(true).open(path).unwrap().write_all(bytes).unwrap();
}

#[tokio::test]
async fn a_torn_end_is_set_aside_and_the_trail_goes_on() {
    let half = b"{\"seq\":24,\"time\":\"20".as_slice();
    let zeros = [&b"{\"se"[..], &[0; 100], b"\n{\"seq\":25}\n"].concat();
    for torn in [half, zeros.as_slice()] {
        let bench = Bench::with_trail(10).await;
        let before = lines(&bench);
        append(&bench, torn);
        let trail = bench.open(Some(bench.head)).unwrap();
        deed(&trail, 1).await;
        trail.stop().await.unwrap();
        let head = trail.head();
        drop(trail);
        assert_eq!(kinds(&bench.verify(&[bench.head, head])), []);
        let after = lines(&bench);
        assert_eq!(after[..before.len()], before);
        let cut = format!("\"event\":\"tail-cut\",\"bytes\":{}", torn.len());
        assert!(after[before.len()].contains(&cut), "{}", after[before.len()]);
        let aside = segments(&bench).pop().unwrap().with_extension("jsonl.torn");
        assert_eq!(fs::read(aside).unwrap(), torn);
    }
}

/// What a power cut can leave of the first group of lines of a file.
fn stillborn(bench: &Bench) -> Vec<Vec<u8>> {
    let line = lines(bench).pop().unwrap().into_bytes();
    let later = [&[0; 4096], line.as_slice(), b"\n"].concat();
    vec![line[..40].to_vec(), vec![0; 4096], later, Vec::new()]
}

#[tokio::test]
async fn a_crash_in_the_first_line_of_a_file_leaves_the_same_trail() {
    let example = Bench::with_trail(3).await;
    for bytes in stillborn(&example) {
        let bench = Bench::with_trail(10).await;
        let next = format!("trail-{:020}.jsonl", bench.head.seq + 1);
        let path = bench.settings().directory.join(next);
        fs::write(&path, &bytes).unwrap();
        let name = example_of(&bench, "\"trail\":");
        for round in 0..2 {
            let trail = bench.open(Some(bench.head)).unwrap();
            deed(&trail, round).await;
            trail.stop().await.unwrap();
            drop(trail);
        }
        assert_eq!(kinds(&bench.verify(&[bench.head])), []);
        assert!(lines(&bench).iter().all(|line| line.contains(&name)), "{name}");
        let aside = fs::read(path.with_extension("jsonl.torn")).unwrap_or_default();
        assert_eq!(aside, bytes);
    }
}

#[tokio::test]
async fn a_crash_in_the_very_first_line_leaves_a_new_trail() {
    let example = Bench::with_trail(3).await;
    for bytes in stillborn(&example) {
        let bench = Bench::new();
        let path = bench.settings().directory.join("trail-00000000000000000001.jsonl");
        drop(bench.open(None).unwrap());
        fs::write(&path, &bytes).unwrap();
        for round in 0..2 {
            let trail = bench.open(None).unwrap();
            deed(&trail, round).await;
            trail.stop().await.unwrap();
            assert_eq!(trail.status().trail.len(), 16);
            drop(trail);
        }
        assert_eq!(kinds(&bench.verify(&[])), []);
        let aside = fs::read(path.with_extension("jsonl.torn")).unwrap_or_default();
        assert_eq!(aside, bytes);
    }
}

#[tokio::test]
async fn a_hollow_file_is_left_alone_where_lines_are_missing() {
    let bench = Bench::with_trail(3).await;
    let path = segments(&bench).pop().unwrap();
    fs::write(&path, b"{\"seq\":1,").unwrap();
    let refused = bench.open(Some(bench.head)).err();
    assert_eq!(refused, Some(AuditError::CutTail { last: 0, known: bench.head.seq }));
    assert_eq!(fs::read(&path).unwrap(), b"{\"seq\":1,");
}

#[tokio::test]
async fn a_torn_end_goes_also_where_the_next_line_begins_a_file() {
    let bench = Bench::with_trail(10).await;
    append(&bench, b"{\"seq\":24,");
    let settings = Settings { segment_bytes: 1, ..bench.settings() };
    let trail = bench.open_with(&settings, Some(bench.head)).unwrap();
    deed(&trail, 1).await;
    trail.stop().await.unwrap();
    drop(trail);
    assert!(segments(&bench).len() > 1);
    assert_eq!(kinds(&bench.verify(&[bench.head])), []);
}

/// The member that begins with `start`, from the first line of the trail.
fn example_of(bench: &Bench, start: &str) -> String {
    let line = lines(bench).swap_remove(0);
    let at = line.find(start).unwrap();
    line[at..at + start.len() + 18].to_owned()
}

#[tokio::test]
async fn damage_that_no_crash_makes_is_refused_until_the_operator_says_otherwise() {
    let bench = Bench::with_trail(10).await;
    let mut damaged = lines(&bench);
    damaged[10] = damaged[10].replace("decrypt", "encrypt");
    write_lines(&bench, &damaged);
    let refused = bench.open(Some(bench.head)).err().unwrap();
    assert!(matches!(refused, AuditError::Damaged { after: 11, .. }), "{refused:?}");
    let settings = Settings { on_break: OnBreak::Record, ..bench.settings() };
    let trail = bench.open_with(&settings, Some(bench.head)).unwrap();
    deed(&trail, 1).await;
    trail.stop().await.unwrap();
    let head = trail.head();
    drop(trail);
    let found = kinds(&bench.verify(&[bench.head, head]));
    assert_eq!(found, [(11, strongroom::audit::FindingKind::Flipped)], "the damage stays visible");
    assert_eq!(segments(&bench).len(), 2, "the damaged file is left as it was");
}

#[tokio::test]
async fn intents_that_a_crash_left_open_are_closed_as_interrupted_also_across_files() {
    let bench = Bench::new();
    let settings = Settings { segment_bytes: 3000, ..bench.settings() };
    let trail = bench.open_with(&settings, None).unwrap();
    let old = trail.begin(intent(1)).durable().await.unwrap();
    let closed = trail.begin(intent(2)).durable().await.unwrap();
    for index in 0..30 {
        deed(&trail, index).await;
    }
    trail.close(closed, Outcome::done()).durable().await.unwrap();
    let young = trail.begin(intent(3)).durable().await.unwrap();
    let left = [old.seq(), young.seq()];
    std::mem::forget((old, young));
    drop(trail);
    assert!(segments(&bench).len() > 3);
    assert_eq!(kinds(&bench.verify(&[])).len(), 2);
    let in_use = Expectations { in_use: true, ..Expectations::default() };
    assert_eq!(bench.verify_with(&in_use).under_way, 2);

    let trail = bench.open_with(&settings, None).unwrap();
    deed(&trail, 9).await;
    drop(trail);
    assert_eq!(kinds(&bench.verify(&[])), []);
    let lines = lines(&bench);
    for of in left {
        let outcome = format!("\"kind\":\"outcome\",\"of\":{of},");
        let line = lines.iter().find(|line| line.contains(&outcome)).unwrap();
        assert!(line.contains("\"caller\":\"unix:1000\",\"uid\":1000"), "{line}");
        assert!(line.ends_with("\"result\":\"interrupted\",\"code\":\"crash\"}"), "{line}");
    }
}

#[tokio::test]
async fn an_entry_that_is_dropped_and_one_that_comes_too_late_are_closed() {
    let bench = Bench::new();
    // With this many before it, no line is on disk at once.
    let many = 10_000;
    let settings = Settings { deadline_ms: 0, backlog: many, ..bench.settings() };
    let trail = bench.open_with(&settings, None).unwrap();
    let mut pending: Vec<_> = (0..many as u64).map(|index| trail.begin(intent(index))).collect();
    let last = pending.pop().unwrap();
    assert_eq!(last.durable().await.err(), Some(AuditError::Deadline));
    drop(pending);
    drop(trail);
    assert_eq!(kinds(&bench.verify(&[])), [], "stopping waits for what is known to be owed");
    let trail = bench.open(None).unwrap();
    drop(trail.begin(intent(3)).durable().await.unwrap());
    trail.stop().await.unwrap();
    assert_eq!(trail.begin(intent(4)).durable().await.err(), Some(AuditError::Closed));
    drop(trail);
    assert_eq!(kinds(&bench.verify(&[])), []);
    let lines = lines(&bench);
    let with = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    assert_eq!(with("\"kind\":\"intent\""), many + 1);
    assert_eq!(with("\"result\":\"interrupted\",\"code\":\"abandoned\""), many + 1);
}

#[tokio::test]
async fn too_many_waiting_lines_are_turned_away_at_once() {
    let bench = Bench::new();
    let settings = Settings { backlog: 4, ..bench.settings() };
    let trail = bench.open_with(&settings, None).unwrap();
    let pending: Vec<_> = (0..2000).map(|index| trail.begin(intent(index))).collect();
    let mut busy = 0;
    for pending in pending {
        match pending.durable().await {
            Ok(entry) => drop(trail.close(entry, Outcome::done())),
            Err(error) => {
                assert_eq!(error, AuditError::Busy);
                busy += 1;
            }
        }
    }
    assert!(busy > 0);
    drop(trail);
    assert_eq!(kinds(&bench.verify(&[])), []);
}

#[test]
fn a_second_writer_and_an_open_directory_are_refused() {
    let bench = Bench::new();
    let trail = bench.open(None).unwrap();
    assert_eq!(bench.open(None).err(), Some(AuditError::InUse));
    drop(trail);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(bench.settings().directory, mode).unwrap();
    assert_eq!(bench.open(None).err(), Some(AuditError::Mode { mode: 0o755 }));
}

/// Runs this test binary once more with only `test`, which finds `TRAIL_TEST` set; writes beyond the
/// limit on file sizes fail there instead of ending the process.
fn again(test: &str, value: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' XFSZ; exec \"$@\"", "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env("TRAIL_TEST", value);
    command
}

#[test]
fn without_room_every_deed_is_refused_and_with_room_it_goes_on_by_itself() {
    if std::env::var_os("TRAIL_TEST").is_some() {
        return fill_and_make_room();
    }
    let test = "recovery::without_room_every_deed_is_refused_and_with_room_it_goes_on_by_itself";
    let output = again(test, "fill").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("went on"), "{text}");
}

/// Where nobody asks for a line, because the status says that none can be written, it is found out all the
/// same.
fn goes_on_unasked(runtime: &tokio::runtime::Runtime) {
    let bench = Bench::new();
    let trail = bench.open(None).unwrap();
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    runtime.block_on(async {
        deed(&trail, 1).await;
        let len = fs::metadata(segments(&bench).pop().unwrap()).unwrap().len();
        setrlimit(Resource::RLIMIT_FSIZE, len + 100, hard).unwrap();
        let refused = trail.begin(intent(2)).durable().await.err();
        assert_eq!(refused, Some(AuditError::Full));
        std::thread::sleep(Duration::from_millis(1500));
        assert_eq!(trail.status().failure, Some(AuditError::Full), "as long as there is no room");
        setrlimit(Resource::RLIMIT_FSIZE, hard, hard).unwrap();
        let began = Instant::now();
        while trail.status().failure.is_some() {
            assert!(began.elapsed() < Duration::from_secs(20), "it stays refused");
            std::thread::sleep(Duration::from_millis(20));
        }
        let now = fs::metadata(segments(&bench).pop().unwrap()).unwrap().len();
        assert_eq!(now, len, "nothing stays of what was tried");
        deed(&trail, 3).await;
        trail.stop().await.unwrap();
    });
    drop(trail);
    assert_eq!(kinds(&bench.verify(&[])), []);
}

fn fill_and_make_room() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    goes_on_unasked(&runtime);
    let bench = Bench::new();
    let trail = bench.open(None).unwrap();
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    runtime.block_on(async {
        deed(&trail, 1).await;
        let held = trail.begin(intent(2)).durable().await.unwrap();
        let len = fs::metadata(segments(&bench).pop().unwrap()).unwrap().len();
        // Room for half a line: every group is cut off in its middle.
        setrlimit(Resource::RLIMIT_FSIZE, len + 100, hard).unwrap();
        for index in 0..5 {
            let refused = trail.begin(intent(index)).durable().await.err();
            assert_eq!(refused, Some(AuditError::Full));
        }
        let outcome = trail.close(held, Outcome::done()).durable().await;
        assert_eq!(outcome, Err(AuditError::Full));
        let told = trail.event(EventNote::new(Event::Locked)).await;
        assert_eq!(told, Err(AuditError::Full));
        assert_eq!(trail.status().failure, Some(AuditError::Full));
        let now = fs::metadata(segments(&bench).pop().unwrap()).unwrap().len();
        assert_eq!(now, len, "cut back to the last good line");
        setrlimit(Resource::RLIMIT_FSIZE, hard, hard).unwrap();
        deed(&trail, 3).await;
        assert_eq!(trail.status().failure, None);
        trail.stop().await.unwrap();
    });
    drop(trail);
    assert_eq!(kinds(&bench.verify(&[])), []);
    let lines = lines(&bench);
    assert!(lines[4].contains("\"of\":4,"), "what was owed comes first: {}", lines[4]);
    assert!(lines[5].contains("\"event\":\"locked\""), "{}", lines[5]);
    println!("went on");
}

#[test]
fn what_was_acknowledged_survives_a_kill() {
    if let Some(directory) = std::env::var_os("TRAIL_TEST") {
        return write_until_killed(directory.into());
    }
    let bench = Bench::new();
    for round in 0..5u64 {
        let directory = bench.settings().directory;
        let mut child =
            again("recovery::what_was_acknowledged_survives_a_kill", directory.to_str().unwrap())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
        let reader = BufReader::new(child.stdout.take().unwrap());
        let mut acknowledged = Vec::new();
        for line in reader.lines() {
            if let Some(seq) = line.unwrap().strip_prefix("done ") {
                acknowledged.push(seq.parse::<u64>().unwrap());
            }
            if acknowledged.len() as u64 == 20 + round * 7 {
                // The shell has replaced itself: this is the writer.
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let trail = bench.open(None).unwrap();
        runtime.block_on(deed(&trail, 0));
        drop(trail);
        assert_eq!(kinds(&bench.verify(&[])), []);
        let lines = lines(&bench);
        for seq in acknowledged {
            let outcome = format!("\"kind\":\"outcome\",\"of\":{seq},");
            let line = lines.iter().find(|line| line.contains(&outcome)).unwrap();
            assert!(line.contains("\"result\":\"done\""), "{line}");
        }
    }
}

fn write_until_killed(directory: std::path::PathBuf) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let bench = Bench::new();
    let settings = Settings { directory, segment_bytes: 20_000, ..bench.settings() };
    let trail = std::sync::Arc::new(bench.open_with(&settings, None).unwrap());
    runtime.block_on(async {
        for task in 0..8 {
            let trail = std::sync::Arc::clone(&trail);
            tokio::spawn(async move {
                loop {
                    let entry = trail.begin(intent(task)).durable().await.unwrap();
                    let seq = entry.seq();
                    trail.close(entry, Outcome::done()).durable().await.unwrap();
                    println!("done {seq}");
                }
            });
        }
        // Longer than any test: the parent ends it.
        tokio::time::sleep(Duration::from_secs(60)).await;
    });
}
