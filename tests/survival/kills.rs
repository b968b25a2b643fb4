//! kill -9 of the front, of custody, and of both, at random moments under load.

use std::thread::JoinHandle;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::appliance::{Appliance, wait_until};
use crate::dice::{Dice, rounds};
use crate::wire::Wire;
use crate::witness::{Counts, Witness};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Front,
    Custody,
    Both,
}

#[test]
fn a_killed_front_loses_nothing() {
    go_rounds(Victim::Front, rounds(20).div_ceil(3));
}

#[test]
fn a_killed_custody_loses_nothing() {
    go_rounds(Victim::Custody, rounds(20).div_ceil(3));
}

#[test]
fn both_killed_lose_nothing() {
    go_rounds(Victim::Both, rounds(20).div_ceil(3));
}

/// After so many rounds a new appliance is taken: the trail is read whole in every round.
const ROUNDS_OF_ONE: u64 = 10;

fn go_rounds(victim: Victim, rounds: u64) {
    let begun = Instant::now();
    let mut dice = Dice::of_run(&format!("kills of {victim:?}"));
    let mut total = Counts::default();
    let mut due = 0;
    let mut gone = 0;
    while gone < rounds {
        let here = (rounds - gone).min(ROUNDS_OF_ONE);
        let mut house = House::new(dice.fork(gone));
        for round in 0..here {
            due += house.round(victim, round, &mut total);
        }
        gone += here;
    }
    println!(
        "kills of {victim:?}: {rounds} rounds in {:.0?}: {} changes acknowledged and {} results in \
         all, none lost; {} states compared, {} of them with an open answer; {due} destructions fell \
         due and were carried out; {} masters were rotated, with a kill on the way",
        begun.elapsed(),
        total.changes,
        total.results,
        total.objects,
        total.open,
        total.rotations,
    );
}

#[test]
fn the_witness_notices_what_is_lost() {
    let mut house = House::new(Dice::of_run("the witness"));
    let load = house.witness.take().expect("there").set_to_work(&house.appliance.socket());
    wait_until("a secret", || {
        let page = house.appliance.get("/v1/secrets").json();
        page["secrets"].as_array().is_some_and(|secrets| secrets.len() > 2)
    });
    let mut witness = load.end();
    let counts = witness.check(&house.appliance, 0);
    assert!(counts.changes > 0 && counts.open == 0, "{counts:?}");
    let notices = |witness: &Witness, what: &str| {
        let check = || witness.check(&house.appliance, 0);
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check));
        assert!(found.is_err(), "{what} went unnoticed");
    };
    // Changed behind its back, as if the change that it was told of had been lost.
    let secrets = house.appliance.get("/v1/secrets").json()["secrets"].clone();
    let name = secrets[0]["name"].as_str().expect("a name");
    let gone = house.appliance.request("DELETE", &format!("/v1/secrets/{name}"), "", b"");
    assert!(gone.status < 300, "{}", gone.text());
    notices(&witness, "a lost secret");
    witness.settle(&house.appliance);
    witness.check(&house.appliance, 0);
    witness.claim(uuid::Uuid::now_v7());
    notices(&witness, "a line that is missing");
}

/// One appliance, its callers and the dice of its fate.
struct House {
    appliance: Appliance,
    witness: Option<Witness>,
    dice: Dice,
    /// How far its clock is ahead.
    days: u64,
}

impl House {
    fn new(mut dice: Dice) -> Self {
        let mut appliance = Appliance::prepared(|config| {
            let audit = config["audit"].as_table_mut().expect("a table");
            // Small numbers, so that kills meet new files and signatures.
            audit.insert("segment_bytes".to_owned(), 65_536.into());
            audit.insert("checkpoint_lines".to_owned(), 100.into());
            audit.insert("head_seconds".to_owned(), 1.into());
            config["log"]["level"] = "info".into();
            let keys = toml::toml! { sweep_seconds = 1
            destroy_wait_days = 1 };
            config.insert("keys".to_owned(), keys.into());
        });
        appliance.move_clock("+0");
        appliance.start();
        appliance.post("/v1/init", &json!({})).expect_status(201);
        let witness = Some(Witness::of(&appliance, &mut dice, || 0));
        Self { appliance, witness, dice, days: 0 }
    }

    /// Load, a kill, the next start, and the comparison. Of three rounds one goes on two days later, and
    /// one rotates the master key; some starts are killed, too. Returns how many destructions fell due.
    fn round(&mut self, victim: Victim, round: u64, total: &mut Counts) -> usize {
        let load = self.witness.take().expect("it is back").set_to_work(&self.appliance.socket());
        let (later, rotates) = (round % 3 == 1, round % 3 == 2);
        std::thread::sleep(self.dice.moment(20, if rotates { 400 } else { 900 }));
        let operator = rotates.then(|| self.rotate());
        self.kill(victim);
        if victim == Victim::Custody && !later {
            std::thread::sleep(self.dice.moment(20, 200));
        }
        let mut witness = load.end();
        if let Some(operator) = operator {
            operator.join().expect("an operator whose request may be lost");
        }
        if victim != Victim::Custody {
            let disturbed = self.dice.once_in(4);
            self.start(disturbed);
        }
        self.appliance.wait_for_state("ready");
        if rotates {
            total.rotations += self.rotation_goes_on();
            witness.open_keys(&self.appliance);
        }
        *total += witness.check(&self.appliance, 0);
        witness.settle(&self.appliance);
        let due = if later { self.go_on_later(victim, &witness) } else { Vec::new() };
        if later {
            witness.settle(&self.appliance);
        }
        self.witness = Some(witness);
        due.len()
    }

    /// Has an operator rotate the master key, and returns at some moment of that.
    fn rotate(&mut self) -> JoinHandle<()> {
        let mut operator = Wire::to(&self.appliance.socket());
        let asking = std::thread::spawn(move || {
            if let Ok(reply) = operator.ask("POST", "/v1/master/rotate", &json!({ "force": true }))
            {
                assert!(reply.status < 300 || reply.status == 503, "{}", reply.text());
            }
        });
        std::thread::sleep(self.dice.moment(1, 400));
        asking
    }

    /// The rotation that was cut off goes on by itself, to an end at which the old master is not needed.
    fn rotation_goes_on(&self) -> usize {
        let master = || self.appliance.get("/v1/master").json();
        // None where the kill came before it had begun.
        wait_until("the rotation", || {
            let now = master();
            now["generation"].is_number()
                && now.get("rotation").is_none_or(|rotation| rotation["stage"] == "done")
        });
        let (now, mut retired) = (master(), 0);
        for generation in now["generations"].as_array().expect("generations") {
            if generation["state"] == "old" {
                let body = json!({ "generation": generation["generation"] });
                self.appliance.post("/v1/master/retire", &body).expect_status(200);
                retired += 1;
            }
        }
        retired
    }

    fn kill(&mut self, victim: Victim) {
        if victim != Victim::Front {
            let custody = Pid::from_raw(self.appliance.custody_pid() as i32);
            kill(custody, Signal::SIGKILL).expect("killed");
        }
        if victim != Victim::Custody {
            self.appliance.kill();
        }
    }

    /// The start that needs no hand. One that is itself killed comes before it, if so `disturbed`.
    fn start(&mut self, disturbed: bool) {
        if disturbed {
            self.appliance.spawn();
            std::thread::sleep(self.dice.moment(1, 150));
            self.appliance.kill();
        }
        self.appliance.start();
    }

    /// Two days later all that waited is due; a kill in the middle of that holds it up at most.
    fn go_on_later(&mut self, victim: Victim, witness: &Witness) -> Vec<String> {
        let due = witness.waiting();
        self.appliance.kill();
        self.days += 2;
        self.appliance.move_clock(&format!("+{}d", self.days));
        self.appliance.start();
        self.appliance.post("/v1/clock/confirm", &json!({})).expect_status(200);
        std::thread::sleep(self.dice.moment(1, 1100));
        self.kill(victim);
        if victim != Victim::Custody {
            self.appliance.start();
        }
        wait_until("the destructions that are due", || {
            let fate = |name: &String| {
                let reply = self.appliance.get(&format!("/v1/keys/{name}"));
                reply.status == 200 && reply.json()["state"] == "destroyed"
            };
            due.iter().all(fate)
        });
        due
    }
}
