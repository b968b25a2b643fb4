//! A chain of hashes alone proves nothing: what no signature and no known head vouches for is a finding.

use std::fs;

use strongroom::audit::{Expectations, FindingKind, Judgement, verify_files};

use super::tools::{Bench, lines, write_lines};

fn without_checkpoints(lines: &[String]) -> Vec<String> {
    use sha2::{Digest, Sha256};
    let mut forged: Vec<String> = Vec::new();
    for line in lines.iter().filter(|line| !line.contains("\"kind\":\"checkpoint\"")) {
        let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
        let old = value["prev"].as_str().unwrap().to_owned();
        let prev = match forged.last() {
            Some(before) => {
                let digest = Sha256::digest(before.as_bytes());
                digest.iter().map(|byte| format!("{byte:02x}")).collect()
            }
            None => old.clone(),
        };
        let number = format!("{{\"seq\":{},", forged.len() + 1);
        let rest = line.split_once(',').unwrap().1;
        value.take();
        forged.push((number + rest).replace(&old, &prev).replace("unix:1000", "unix:31337"));
    }
    forged
}

#[tokio::test]
async fn a_chain_forged_without_the_key_is_not_sound() {
    let bench = Bench::with_trail(5).await;
    let honest = bench.verify(&[]);
    assert!(honest.is_sound() && honest.proven > 0, "{honest}");
    let head = honest.last.unwrap();
    write_lines(&bench, &without_checkpoints(&lines(&bench)));
    let report = bench.verify(&[]);
    assert!(report.findings.iter().any(|f| f.kind == FindingKind::Unproven), "{report}");
    assert!(!bench.verify(&[head]).is_sound());
}

#[tokio::test]
async fn nothing_at_all_is_not_sound() {
    let bench = Bench::with_trail(5).await;
    let empty = bench.directory.path().join("empty.jsonl");
    fs::write(&empty, "").unwrap();
    let report = verify_files(&[empty], &[], &Expectations::default()).unwrap();
    assert!(!report.is_sound());
    assert!(report.to_string().contains("NOT SOUND"), "{report}");
}

#[tokio::test]
async fn a_long_end_without_a_signature_is_never_called_sound_and_a_known_head_is_proof() {
    let bench = Bench::with_trail(5).await;
    let whole = lines(&bench);
    let first = whole.iter().position(|line| line.contains("\"kind\":\"checkpoint\"")).unwrap();
    let strict = Expectations { most_unproven: 1, ..Expectations::default() };
    let mut cut = whole[..=first].to_vec();
    write_lines(&bench, &cut);
    assert!(bench.verify_with(&strict).is_sound(), "{}", bench.verify_with(&strict));
    cut.extend(whole[first + 1..].iter().take_while(|l| !l.contains("checkpoint")).cloned());
    write_lines(&bench, &cut);
    let report = bench.verify_with(&strict);
    assert_eq!(report.judgement(), Judgement::UnsignedTail, "{report}");
    assert!(!report.is_sound() && report.findings.is_empty());
    assert!(report.to_string().contains("UNSIGNED TAIL"), "{report}");
    let known = vec![report.last.unwrap()];
    let with_head = bench.verify_with(&Expectations { known, ..strict });
    assert!(!with_head.unsigned_tail, "{with_head}");
}
