//! What a decryption costs: bare, and through the socket of a whole appliance with its trail on disk.
//!
//! `cargo bench --bench decrypt` prints a table, with `-- --json` the same for programs; `--seconds N` says how
//! long each measurement takes. The appliance is a release build of its own in a directory of its own
//! under `target/`, with a SoftHSM token of its own; it ends with the bench.

#[path = "../../tests/support/ahead.rs"]
mod ahead;
#[path = "../../tests/support/appliance.rs"]
#[allow(dead_code)] // made for the tests, which use more of it
mod appliance;
mod bare;
mod load;
mod machine;
mod report;
#[path = "../../tests/support/token.rs"]
mod token;

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use appliance::Appliance;
use report::{Beside, Idle, Paced, Report, Socket, Startup};
use serde_json::json;

/// Connections at the same time.
const CONNECTIONS: [usize; 3] = [1, 8, 64];

/// How often the start is measured.
const STARTS: usize = 7;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let seconds = arguments.iter().position(|argument| argument == "--seconds");
    let seconds = seconds.and_then(|at| arguments.get(at + 1)?.parse().ok()).unwrap_or(5.0);
    let time = Duration::from_secs_f64(seconds);
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    tempfile::env::override_temp_dir(directory).expect("nobody else has set it");

    let report = measure(time, directory);
    if arguments.iter().any(|argument| argument == "--json") {
        println!("{}", serde_json::to_string_pretty(&report).expect("JSON"));
    } else {
        print!("{report}");
    }
}

fn measure(time: Duration, directory: &Path) -> Report {
    let machine = machine::describe(directory);
    let ahead = load::may_run_ahead();
    let openssl = bare::openssl();
    let key = bare::Key::generate();
    let before = key.decrypt(1, time);
    let two = key.decrypt(2, time);
    let woken = key.decrypt_woken(time);

    let mut appliance = Appliance::configured(|config| {
        config["log"]["level"] = "info".into();
    });
    appliance.post("/v1/init", &json!({})).expect_status(201);
    appliance.create_key("bench");
    let request = load::decrypt_request(&appliance, "bench");
    let startup = startup(&mut appliance);
    std::thread::sleep(Duration::from_secs(1));
    let idle = idle(&appliance);
    let sockets = CONNECTIONS.map(|connections| {
        let (front, custody) = (appliance.front_pid(), appliance.custody_pid());
        load::run(&appliance.socket(), &request, connections, time, &[front, custody])
    });
    let half = sockets[CONNECTIONS.len() - 1].figures.per_second / 2.0;
    let half_load = load::run_paced(&appliance.socket(), &request, half, time);
    let beside = load::run_beside(&appliance.socket(), &request, time);
    let loaded = self::idle(&appliance);
    appliance.stop();

    let after = key.decrypt(1, time);
    let one = before.mean(&after);
    let sockets = sockets.into_iter().map(|run| Socket::of(run, &one, &two)).collect();
    let half_load = Paced { per_second: half, p50_ms: half_load.0, p99_ms: half_load.1 };
    let beside = Beside { p50_ms: beside.0, p99_ms: beside.1 };
    Report {
        machine,
        openssl,
        one,
        two,
        woken,
        ahead,
        sockets,
        half_load,
        beside,
        startup,
        idle,
        loaded,
    }
}

/// From exec to the first 200 of health, several times.
fn startup(appliance: &mut Appliance) -> Startup {
    let mut times = Vec::new();
    for _ in 0..STARTS {
        appliance.stop();
        let started = Instant::now();
        appliance.spawn();
        while UnixStream::connect(appliance.socket()).is_err()
            || appliance.get("/v1/health").status != 200
        {
            assert!(started.elapsed() < appliance::PATIENCE, "it never gets ready");
            std::thread::sleep(Duration::from_millis(1));
        }
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Startup { least_ms: times[0], median_ms: times[STARTS / 2], most_ms: times[STARTS - 1] }
}

fn idle(appliance: &Appliance) -> Idle {
    let front = machine::memory(appliance.front_pid());
    let custody = machine::memory(appliance.custody_pid());
    Idle { both_rss_mib: front.rss_mib + custody.rss_mib, front, custody }
}
