//! Checkpoints are a numbered chain: none can be taken away, and one whose answer was lost comes first.

use std::time::Duration;

use aws_lc_rs::signature::KeyPair;
use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};
use strongroom::audit::{AuditError, FindingKind, Head, SignError, VerifyKey};
use strongroom::custody::Mark;

use super::tools::{Bench, Sign, chain_anew, deed, intent, kinds, lines, signed, write_lines};

fn numbers(bench: &Bench) -> Vec<u64> {
    let values = lines(bench).into_iter().map(|line| serde_json::from_str::<Value>(&line).unwrap());
    values.filter_map(|line| line["number"].as_u64()).collect()
}

#[tokio::test]
async fn a_checkpoint_whose_answer_was_lost_is_written_before_the_next_one() {
    let bench = Bench::new();
    let trail = bench.open(None).unwrap();
    deed(&trail, 1).await;
    *bench.sign.lock().unwrap() = Sign::Loses;
    assert!(trail.checkpoint().await.is_err());
    *bench.sign.lock().unwrap() = Sign::Works;
    deed(&trail, 2).await;
    trail.checkpoint().await.unwrap();
    drop(trail);
    assert_eq!(numbers(&bench), [1, 2]);
    let report = bench.verify(&[]);
    assert!(report.is_sound() && report.number == 2, "{report}");
}

#[tokio::test]
async fn one_that_a_crash_has_kept_from_the_disk_is_written_at_the_start() {
    let bench = Bench::new();
    let trail = bench.open(None).unwrap();
    deed(&trail, 1).await;
    *bench.sign.lock().unwrap() = Sign::Loses;
    assert!(trail.checkpoint().await.is_err());
    deed(&trail, 2).await;
    drop(trail);
    *bench.sign.lock().unwrap() = Sign::Works;
    let trail = bench.open_held();
    let waits = trail.begin(intent(3)).durable().await;
    assert!(matches!(waits, Err(AuditError::Held)));
    assert_eq!(numbers(&bench), [0; 0], "nothing is written before custody was asked");
    assert!(trail.begin_history(None).await.unwrap().with_token);
    deed(&trail, 4).await;
    trail.stop().await.unwrap();
    drop(trail);
    assert_eq!(numbers(&bench), [1, 2]);
    let texts = lines(&bench);
    assert!(texts.iter().any(|line| line.contains("\"event\":\"lines-adopted\"")), "{texts:#?}");
    assert!(bench.verify(&[]).is_sound());
}

#[tokio::test]
async fn a_trail_that_is_not_the_one_that_was_signed_stays_as_it_is() {
    let bench = Bench::new();
    let trail = bench.open(None).unwrap();
    deed(&trail, 1).await;
    trail.checkpoint().await.unwrap();
    deed(&trail, 2).await;
    trail.stop().await.unwrap();
    drop(trail);
    let before = lines(&bench);
    let cut: Vec<String> = before.iter().take(before.len() - 2).cloned().collect();
    write_lines(&bench, &cut);
    let trail = bench.open_held();
    let begun = trail.begin_history(None).await;
    let Err(AuditError::NotSigned(SignError::NotNewest(why))) = begun else { panic!("{begun:?}") };
    assert!(why.contains("checkpoint 2"), "{why}");
    assert!(trail.begin(intent(3)).durable().await.is_err());
    // What was done is not: at the end nothing waits for it.
    tokio::time::timeout(Duration::from_secs(10), trail.stop()).await.unwrap().unwrap_err();
    drop(trail);
    assert_eq!(lines(&bench), cut);
}

#[tokio::test]
async fn a_newest_checkpoint_of_another_key_is_not_believed_where_custody_remembers_nothing() {
    let bench = Bench::new();
    let trail = bench.open(None).unwrap();
    deed(&trail, 1).await;
    trail.checkpoint().await.unwrap();
    drop(trail);
    *bench.memory.lock().unwrap() = None;
    let key = |bench: &Bench| {
        let pem = VerifyKey::pem_of_point(bench.key.public_key().as_ref()).unwrap();
        VerifyKey::from_pem(&pem).unwrap()
    };
    let other = Bench::new();
    for (generation, of) in [(1, &other), (2, &bench), (2, &other)] {
        let trail = bench.open_held();
        let begun = trail.begin_history(Some((generation, key(of)))).await;
        let Err(AuditError::NotSigned(SignError::NotNewest(why))) = begun else {
            panic!("{generation}: {begun:?}")
        };
        assert!(why.contains("is not signed by the token's key"), "{why}");
        assert!(trail.is_held());
    }
    let trail = bench.open_held();
    trail.begin_history(Some((1, key(&bench)))).await.unwrap();
    assert!(!trail.is_held());
}

/// The line of a checkpoint as whoever has the key could write it.
fn forged(bench: &Bench, line: &str, mark: Mark, before: Mark) -> String {
    let trail = serde_json::from_str::<Value>(line).unwrap()["trail"].as_str().unwrap().to_owned();
    let made = signed(&bench.key, &trail, mark, before);
    let signature = BASE64_STANDARD.encode(made.signature_bytes().unwrap());
    let mut text = line.to_owned();
    let value: Value = serde_json::from_str(line).unwrap();
    for (name, new) in [
        ("covers", json!(mark.covers)),
        ("head", json!(Head { seq: 1, hash: strongroom::audit::Hash(mark.head) }.hash.to_string())),
        ("at", json!(made.at)),
        ("number", json!(mark.number)),
        ("previous", json!(before.to_string())),
        ("signature", json!(signature)),
    ] {
        text = text.replace(&format!("\"{name}\":{}", value[name]), &format!("\"{name}\":{new}"));
    }
    text
}

#[tokio::test]
async fn a_checkpoint_taken_out_is_missed_by_the_next_one() {
    let bench = Bench::with_trail(4).await;
    let whole = lines(&bench);
    let at: Vec<usize> = (0..whole.len()).filter(|at| whole[*at].contains("\"number\"")).collect();
    let [first, second] = at[..] else { panic!("{at:?}") };
    // Without the first one, and numbered again, as if it had never been.
    let mut without: Vec<String> = whole.clone();
    let removed = without.remove(first);
    for (index, line) in without.iter_mut().enumerate().skip(first) {
        let rest = line.split_once(',').unwrap().1.to_owned();
        *line = format!("{{\"seq\":{},{rest}", index + 1);
        for of in first + 1..whole.len() {
            *line = line.replace(&format!("\"of\":{},", of + 1), &format!("\"of\":{of},"));
        }
    }
    chain_anew(&mut without, first);
    let value = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let before: Mark = {
        let (head, covers) = (value(&removed)["head"].clone(), value(&removed)["covers"].clone());
        let text = format!("1:{covers}:{}", head.as_str().unwrap());
        text.parse().unwrap()
    };
    let cover = strongroom::audit::Hash::of_line(without[second - 2].as_bytes());
    let mark = Mark { number: 2, covers: second as u64 - 1, head: cover.0 };
    without[second - 1] = forged(&bench, &without[second - 1], mark, before);
    chain_anew(&mut without, second);
    write_lines(&bench, &without);
    let found = kinds(&bench.verify(&[]));
    let unlinked = FindingKind::CheckpointUnlinked { number: 0, previous: 1 };
    assert_eq!(found, [(second as u64, unlinked)]);
    // A jump that custody signed itself is what an operator accepted.
    let start = Mark {
        number: 0,
        covers: 0,
        head: strongroom::audit::Hash::genesis(value(&whole[0])["trail"].as_str().unwrap()).0,
    };
    without[second - 1] = forged(&bench, &without[second - 1], mark, start);
    chain_anew(&mut without, second);
    write_lines(&bench, &without);
    let report = bench.verify(&[]);
    assert!(report.is_sound() && report.replaced.len() == 1, "{report}");
}
