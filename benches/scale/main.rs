//! What a full house costs: start, memory, decryption and lists with many keys and secrets stored, each
//! beside the same with hardly any.
//!
//! `cargo bench --bench scale` fills an appliance of its own under `target/` with 100 000 keys and
//! 1 000 000 secrets through its socket, which takes several minutes and some GiB of disk;
//! `-- --keys N --secrets N` for less of either.

#[path = "../../tests/support/ahead.rs"]
mod ahead;
#[path = "../../tests/support/appliance.rs"]
#[allow(dead_code)] // made for the tests, which use more of it
mod appliance;
#[path = "../decrypt/bare.rs"]
#[allow(dead_code)] // made for the other bench
mod bare;
mod fill;
#[path = "../decrypt/load.rs"]
#[allow(dead_code)] // made for the other bench
mod load;
#[path = "../decrypt/machine.rs"]
#[allow(dead_code)] // made for the other bench
mod machine;
#[path = "../decrypt/report.rs"]
#[allow(dead_code)] // made for the other bench
mod report;
#[path = "../../tests/support/token.rs"]
mod token;

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use appliance::Appliance;
use serde_json::json;

/// How long each measurement of decryption takes.
const TIME: Duration = Duration::from_secs(5);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str, default: usize| {
        let at = arguments.iter().position(|argument| argument == name);
        at.and_then(|at| arguments.get(at + 1)?.parse().ok()).unwrap_or(default)
    };
    let (keys, secrets) = (number("--keys", 100_000), number("--secrets", 1_000_000));
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    tempfile::env::override_temp_dir(directory).expect("nobody else has set it");
    let mut appliance = Appliance::configured(|config| config["log"]["level"] = "info".into());
    appliance.post("/v1/init", &json!({})).expect_status(201);
    appliance.create_key("bench");
    let request = load::decrypt_request(&appliance, "bench");

    header();
    measure(&mut appliance, &request, 1, 0);
    fill::keys(&appliance, keys);
    fill::secrets(&appliance, secrets);
    header();
    measure(&mut appliance, &request, keys + 1, secrets);
}

fn header() {
    println!(
        "{:>9}{:>9}{:>10}{:>10}{:>10}{:>10}{:>10}{:>11}{:>11}{:>11}{:>11}{:>10}",
        "keys",
        "secrets",
        "store MiB",
        "start ms",
        "again ms",
        "idle MiB",
        "used MiB",
        "decrypt/s",
        "CPU ms/op",
        "first page",
        "last page",
        "read ms"
    );
}

/// Restarts the appliance, twice, and prints one line of figures: the first start reads what was stored
/// since the last one, the second does not.
fn measure(appliance: &mut Appliance, request: &[u8], keys: usize, secrets: usize) {
    let [first_start, second_start] =
        [start(appliance), start(appliance)].map(|time| time.as_secs_f64() * 1e3);
    std::thread::sleep(Duration::from_secs(2));
    let idle = resident(appliance);
    let pids = [appliance.front_pid(), appliance.custody_pid()];
    let run = load::run(&appliance.socket(), request, 8, TIME, &pids);
    let first = page(appliance, "");
    // The last that are there: their numbers but for two digits.
    let name = fill::name("s", secrets.saturating_sub(1));
    let last = page(appliance, &name[..name.len() - 2]);
    let read = reads(appliance, keys);
    let used = resident(appliance);
    let store = size(&appliance.path("store")) >> 20;
    println!(
        "{keys:>9}{secrets:>9}{store:>10}{first_start:>10.0}{second_start:>10.0}{idle:>10.1}{used:>10.1}{:>11.0}{:>11.4}{:>8.2} ms\
         {:>8.2} ms{read:>10.2}",
        run.figures.per_second, run.figures.cpu_ms, first, last,
    );
}

/// From exec to the first 200 of health.
fn start(appliance: &mut Appliance) -> Duration {
    appliance.stop();
    let started = Instant::now();
    appliance.spawn();
    while UnixStream::connect(appliance.socket()).is_err()
        || appliance.get("/v1/health").status != 200
    {
        assert!(started.elapsed() < Duration::from_secs(300), "it never gets ready");
        std::thread::sleep(Duration::from_millis(1));
    }
    started.elapsed()
}

/// Resident memory of both processes, in MiB.
fn resident(appliance: &Appliance) -> f64 {
    let pids = [appliance.front_pid(), appliance.custody_pid()];
    pids.map(|pid| machine::memory(pid).rss_mib).iter().sum()
}

/// Milliseconds, at the median, of a page of 100 secrets whose names begin so.
fn page(appliance: &Appliance, prefix: &str) -> f64 {
    median(|| {
        let reply = appliance.get(&format!("/v1/secrets?limit=100&prefix={prefix}"));
        reply.expect_status(200);
    })
}

/// Milliseconds, at the median, to show a key, each time another one all over the store.
fn reads(appliance: &Appliance, keys: usize) -> f64 {
    let mut number = 0;
    median(|| {
        number = (number + 7919) % keys.max(1);
        let name =
            if keys == 1 { "bench".to_owned() } else { fill::name("k", number % (keys - 1)) };
        appliance.get(&format!("/v1/keys/{name}")).expect_status(200);
    })
}

fn median(mut act: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..200)
        .map(|_| {
            let started = Instant::now();
            act();
            started.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Bytes of all files below a directory.
fn size(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).expect("readable").flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.sum()
}
