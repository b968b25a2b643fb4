//! The power goes while callers change things: whatever the disk has kept, the next start opens it and
//! finds everything that was acknowledged.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::appliance::Appliance;
use crate::device::{Disk, Kept};
use crate::dice::{Dice, rounds};
use crate::mounts::{Ext4, own_mounts};
use crate::object::Moment;
use crate::token::TestToken;
use crate::unsynced::without_syncs;
use crate::witness::{Counts, Witness};

/// Cuts of one run of the callers.
const CUTS_OF_ONE: u64 = 20;

/// MiB of the disk.
const SIZE: u64 = 64;

#[test]
fn what_was_acknowledged_survives_a_power_cut() {
    own_mounts();
    let begun = Instant::now();
    let mut dice = Dice::of_run("power");
    let (cuts, mut total) = (rounds(6), Counts::default());
    let mut gone = 0;
    while gone < cuts {
        let mut run = Run::over(&mut dice, Duration::from_millis(3000), |_| {});
        let here = (cuts - gone).min(CUTS_OF_ONE);
        for _ in 0..here {
            total += run.cut(&mut dice);
        }
        gone += here;
    }
    println!(
        "power: {cuts} rounds in {:.0?}: every store and trail opened; of what had been told before each \
         cut, {} changes and {} results in all were looked for and found; {} states compared, {} of them \
         with an open answer",
        begun.elapsed(),
        total.changes,
        total.results,
        total.objects,
        total.open,
    );
}

#[test]
fn without_its_syncs_a_power_cut_would_be_noticed() {
    own_mounts();
    let mut dice = Dice::of_run("power without syncs");
    let mut run = Run::over(&mut dice, Duration::from_millis(1000), |appliance| {
        appliance.before_exec(without_syncs);
    });
    assert!(run.finds_loss(Kept::All, &mut dice), "nothing was synced, and nothing was missed");
}

#[test]
fn a_disk_that_lies_about_its_last_flushes_would_be_noticed() {
    own_mounts();
    let mut dice = Dice::of_run("power with a lying disk");
    let mut run = Run::over(&mut dice, Duration::from_millis(1000), |_| {});
    assert!(
        run.finds_loss(Kept::Lied(20), &mut dice),
        "20 flushes were undone, and none was missed"
    );
}

/// Callers at work over a disk that remembers, and what they were told.
struct Run {
    appliance: Appliance,
    witness: Witness,
    disk: Disk,
    /// When the callers began, and when they ended.
    span: (Moment, Moment),
}

impl Run {
    fn over(dice: &mut Dice, time: Duration, change: impl FnOnce(&mut Appliance)) -> Self {
        let mut appliance = Appliance::prepared(|config| {
            let at = |config: &toml::Table, name: &str| {
                let socket = config["listen"]["socket"].as_str().expect("a path");
                let directory = std::path::Path::new(socket).parent().expect("its directory");
                directory.join("mount").join(name).display().to_string()
            };
            config["store"]["path"] = at(config, "store").into();
            config["audit"]["directory"] = at(config, "trail").into();
            // What custody remembers is on the disk, too: neither it nor the trail may be ahead of the other.
            config["custody"]["state_directory"] = at(config, "custody-state").into();
            let audit = config["audit"].as_table_mut().expect("a table");
            audit.insert("segment_bytes".to_owned(), 65_536.into());
            audit.insert("checkpoint_lines".to_owned(), 100.into());
            audit.insert("head_seconds".to_owned(), 1.into());
            config["log"]["level"] = "info".into();
        });
        let scratch = appliance.path("");
        let disk = Disk::new(&scratch, Ext4::image(SIZE, &scratch));
        let mounted = Ext4::mount(disk.file(), &appliance.path("mount"));
        change(&mut appliance);
        appliance.start();
        appliance.post("/v1/init", &json!({})).expect_status(201);
        let witness = Witness::of(&appliance, dice, disk.clock());
        let clock = disk.clock();
        let begun = clock();
        let load = witness.set_to_work(&appliance.socket());
        std::thread::sleep(time);
        let ended = clock();
        let witness = load.end();
        appliance.kill();
        mounted.unmount();
        Self { appliance, witness, disk, span: (begun, ended) }
    }

    /// Power goes at some moment of the run; the next start serves what the disk has kept.
    fn cut(&mut self, dice: &mut Dice) -> Counts {
        let kept = [Kept::All, Kept::Nothing, Kept::Some][dice.below(3) as usize];
        self.cut_with(kept, dice)
    }

    /// Whether one of a few cuts shows that something is missing.
    fn finds_loss(&mut self, kept: Kept, dice: &mut Dice) -> bool {
        (0..5).any(|_| {
            let cut = AssertUnwindSafe(|| self.cut_with(kept, dice));
            catch_unwind(cut).is_err()
        })
    }

    fn cut_with(&mut self, kept: Kept, dice: &mut Dice) -> Counts {
        let (begun, ended) = self.span;
        let cut = begun + dice.below(ended - begun + 1);
        let image = self.appliance.path("after-the-cut");
        write_sparse(&image, &self.disk.after_cut(cut, kept, dice));
        let mounted = Ext4::mount(&image, &self.appliance.path("mount"));
        // A token's memory is never ahead of the disk's; this one has seen the whole run.
        forget_checkpoints(self.appliance.token());
        let from = self.appliance.log().len();
        let running = Running::start(&mut self.appliance, cut, kept, from);
        let counts = self.witness.check(running.0, cut);
        drop(running);
        mounted.unmount();
        counts
    }
}

fn forget_checkpoints(token: &TestToken) {
    let label = "strongroom checkpoint";
    while token.pkcs11_tool(&["--list-objects", "--type", "data"]).contains(label) {
        token.pkcs11_tool(&["--delete-object", "--type", "data", "--label", label]);
    }
}

/// A daemon that is killed when this goes, also by a panic.
struct Running<'a>(&'a mut Appliance);

impl<'a> Running<'a> {
    fn start(appliance: &'a mut Appliance, cut: Moment, kept: Kept, from: usize) -> Self {
        appliance.spawn();
        let refused = appliance.settled();
        let log = appliance.log();
        assert!(!refused, "it does not start after a cut at {cut}, {kept:?}:\n{}", &log[from..]);
        let running = Self(appliance);
        let state = running.0.get("/v1/status").json()["state"].clone();
        assert_eq!(state, "ready", "after a cut at {cut}, {kept:?}");
        running
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.kill();
    }
}

/// Writes an image and leaves holes where it holds nothing.
fn write_sparse(path: &std::path::Path, image: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path).expect("a file");
    file.set_len(image.len() as u64).expect("its size");
    for (number, block) in image.chunks(4096).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, number as u64 * 4096).expect("room for an image");
        }
    }
}
