//! Hostile neighbours: one user that idles on thousands of connections, dribbles, floods, never reads and
//! resets, all at once, while another user asks as ever.
//!
//! What has to hold is the outcome: the other user is served, memory stays bounded, who is turned away
//! is told so, and everything is given back. How long the other user waits is printed, and bounded
//! generously: `scripts/nightly neighbours` is the run with ten thousand connections.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::acts::encrypt;
use crate::ahead::ahead;
use crate::appliance::{Appliance, JSON, PATIENCE, wait_until};
use crate::callers::{User, open_to_all};
use crate::limits::{descriptors, resident_kib};

const CROWD: User = User::new(60_031);
const BUSY: User = User::new(60_032);
const OTHER: User = User::new(60_033);

/// Longer than this nobody may wait who keeps to the rules, on a machine that does other things too.
const BOUND: Duration = Duration::from_secs(5);

/// One appliance, a key, and who works with it.
struct House {
    appliance: Appliance,
    body: String,
}

impl House {
    fn new(places: usize) -> Self {
        let appliance = Appliance::configured(|config| {
            let limits = format!(
                "connections = {}\nconnections_per_uid = {places}\nheader_timeout_ms = 120000\n\
                 body_timeout_ms = 120000\nanswer_timeout_ms = 120000",
                places + 100
            );
            let limits: toml::Table = limits.parse().expect("TOML");
            config.insert("limits".to_owned(), limits.into());
            config["log"]["level"] = "info".into();
            let users = config["policy"]["roles"]["service"]["users"].as_array_mut();
            let bound = [BUSY, OTHER].map(|user| toml::Value::from(i64::from(user.uid)));
            users.expect("users").extend(bound);
        });
        open_to_all(&appliance);
        appliance.post("/v1/init", &json!({})).expect_status(201);
        appliance.create_shared_key("k");
        let body = json!({ "ciphertext": encrypt(&appliance, "k", "x") }).to_string();
        Self { appliance, body }
    }

    /// One decryption on a connection of its own, as whoever this thread is.
    fn decrypt(&self) -> Duration {
        let begin = Instant::now();
        let body = self.body.as_bytes();
        let reply = self.appliance.request("POST", "/v1/keys/k/decrypt", JSON, body);
        reply.expect_status(200);
        begin.elapsed()
    }

    /// How long each of so many decryptions of the other user takes.
    fn waits(&self, many: usize) -> Waits {
        let mut waits: Vec<Duration> =
            ahead(|| OTHER.does(|| (0..many).map(|_| self.decrypt()).collect()));
        waits.sort();
        Waits(waits)
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.appliance.socket()).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        stream.set_write_timeout(Some(Duration::from_millis(200))).expect("set");
        stream
    }
}

struct Waits(Vec<Duration>);

impl Waits {
    fn at(&self, part: f64) -> Duration {
        self.0[((self.0.len() - 1) as f64 * part) as usize]
    }
}

impl std::fmt::Display for Waits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |part| self.at(part).as_secs_f64() * 1000.0;
        write!(f, "p50 {:.2} ms, p99 {:.2} ms, longest {:.2} ms", ms(0.5), ms(0.99), ms(1.0))
    }
}

/// How many idle connections: few here, many in the nightly rounds.
fn crowd() -> usize {
    std::env::var("STRONGROOM_TEST_CROWD").ok().and_then(|many| many.parse().ok()).unwrap_or(2000)
}

/// This process holds the other end of every connection.
fn raise_descriptors(needed: u64) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (has, may) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    assert!(may >= needed, "needs {needed} open files, may have {may}: ulimit -Hn");
    if has < needed {
        setrlimit(Resource::RLIMIT_NOFILE, needed, may).expect("raised");
    }
}

const HEALTH: &str = "GET /v1/health HTTP/1.1\r\nhost: x\r\n\r\n";
const REFUSED: &str = "GET /v1/keys/k HTTP/1.1\r\nhost: x\r\n\r\n";
const LARGE: &str = "GET /v1/openapi.json HTTP/1.1\r\nhost: x\r\n\r\n";
const SLOW_BODY: &str = "POST /v1/keys/k/decrypt HTTP/1.1\r\nhost: x\r\n\
    content-type: application/json\r\ncontent-length: 100000\r\n\r\n";

/// Sends a byte a second on many connections: in their headers, and in their bodies.
fn dribble(house: &House, many: usize, stop: &AtomicBool) {
    let begun = |text: &str| {
        let mut stream = house.connect();
        stream.write_all(text.as_bytes()).expect("sent");
        stream
    };
    let mut streams: Vec<UnixStream> = (0..many)
        .map(|at| begun(if at % 2 == 0 { "GET /v1/health HTTP/1.1\r\nx: " } else { SLOW_BODY }))
        .collect();
    while !stop.load(Ordering::Relaxed) {
        streams.iter_mut().for_each(|stream| drop(stream.write_all(b"x")));
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Thousands of requests in one write, not one answer read; then again. Not without a pause: who takes the
/// processors away is the kernel's to hold back, not ours.
fn flood(house: &House, request: &str, stop: &AtomicBool, sent: &AtomicU64) {
    let many = request.repeat(2000);
    while !stop.load(Ordering::Relaxed) {
        let mut stream = house.connect();
        let _ = stream.write_all(many.as_bytes());
        sent.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Asks for much and takes nothing, for as long as it goes.
fn never_read(house: &House, many: usize, stop: &AtomicBool) {
    let mut streams: Vec<UnixStream> = (0..many).map(|_| house.connect()).collect();
    streams.iter_mut().for_each(|stream| drop(stream.write_all(LARGE.repeat(200).as_bytes())));
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Hangs up at every stage, sends headers without end, and shuts one side.
fn be_rude(house: &House, stop: &AtomicBool) {
    let headers: String = (0..2000).map(|at| format!("x-{at}: y\r\n")).collect();
    while !stop.load(Ordering::Relaxed) {
        for beginning in ["", "G", HEALTH, SLOW_BODY, REFUSED] {
            let _ = house.connect().write_all(beginning.as_bytes());
        }
        let mut stream = house.connect();
        let _ = stream.write_all(format!("GET / HTTP/1.1\r\n{headers}\r\n").as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        expect_one_of(&answer, &["431", "503"]);
        let mut stream = house.connect();
        let _ = stream.write_all(HEALTH.as_bytes()).and(stream.shutdown(Shutdown::Write));
        answer.clear();
        let _ = stream.read_to_end(&mut answer);
        expect_one_of(&answer, &["200", "429", "503"]);
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Its own user's places may all be taken by its floods.
fn expect_one_of(answer: &[u8], statuses: &[&str]) {
    let answer = String::from_utf8_lossy(answer);
    let status = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    assert!(status.is_some_and(|status| statuses.contains(&status)), "{answer}");
}

#[test]
fn one_user_s_crowd_leaves_the_others_their_service() {
    let many = crowd();
    raise_descriptors(many as u64 + 1000);
    let house = House::new(many + 200);
    let appliance = &house.appliance;
    let requests = 300 + many / 10;
    house.waits(50);
    let quiet = house.waits(requests);
    println!("neighbours: quiet: {quiet}");

    // A connection that has just ended may still be counted.
    let fewest = (0..10).map(|_| {
        std::thread::sleep(Duration::from_millis(20));
        descriptors(appliance)
    });
    let (files, memory) = (fewest.min().expect("ten looks"), resident_kib(appliance));
    let begin = Instant::now();
    let idle: Vec<UnixStream> = CROWD.does(|| (0..many).map(|_| house.connect()).collect());
    wait_until("all to be accepted", || descriptors(appliance) >= files + many);
    let grown = resident_kib(appliance).saturating_sub(memory);
    let each = grown * 1024 / many;
    println!("neighbours: {many} idle connections: {grown} KiB, {each} bytes each");
    let idling = house.waits(requests);
    println!("neighbours: beside them: {idling}");

    let (stop, floods) = (AtomicBool::new(false), AtomicU64::new(0));
    let hostile = std::thread::scope(|scope| {
        let (house, stop, floods) = (&house, &stop, &floods);
        let end = OnDrop(stop);
        let busy = |deed: Box<dyn FnOnce() + Send>| scope.spawn(move || CROWD.does(deed));
        busy(Box::new(|| dribble(house, 100, stop)));
        busy(Box::new(|| never_read(house, 20, stop)));
        wait_until("all these, too", || descriptors(&house.appliance) >= files + many + 120);
        busy(Box::new(|| be_rude(house, stop)));
        for request in [HEALTH, REFUSED, HEALTH, LARGE] {
            busy(Box::new(move || flood(house, request, stop, floods)));
        }
        wait_until("a flood", || floods.load(Ordering::Relaxed) > 4);
        let waits = house.waits(requests);
        drop(end);
        waits
    });
    let peak = resident_kib(appliance).saturating_sub(memory);
    let (floods, seconds) = (floods.into_inner(), begin.elapsed().as_secs() as usize + 1);
    println!("neighbours: beside floods and all: {hostile}; {floods} floods, {peak} KiB more");
    drop(idle);
    wait_until("everything to be given back", || descriptors(appliance) <= files);
    for waits in [&quiet, &idling, &hostile] {
        assert!(waits.at(1.0) < BOUND, "{waits}");
    }
    assert!(each < 8 * 1024, "{each} bytes for an idle connection");
    assert!(peak < grown + 64 * 1024, "{peak} KiB more than before");
    let log = appliance.log();
    assert!(!log.contains("panicked"), "{log}");
    assert!(log.lines().count() < 100 + 40 * seconds, "{} lines", log.lines().count());
    let trail = crate::acts::trail_lines(&appliance.trail());
    let refused = trail.iter().filter(|line| line["result"] == "refused").count();
    assert!(refused <= 120 * (seconds / 60 + 2), "{refused} refusals fill the trail");
    assert!(trail.iter().any(|line| line["event"] == "refusals-left-out"));
}

/// Two users that both may: one asks on many connections at once, the other waits for few of them.
#[test]
fn one_user_s_work_does_not_stand_before_another_s() {
    let house = House::new(200);
    house.waits(50);
    let quiet = house.waits(300);
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let beside = std::thread::scope(|scope| {
        let (house, stop, done) = (&house, &stop, &done);
        let end = OnDrop(stop);
        for _ in 0..48 {
            scope.spawn(move || {
                BUSY.does(|| {
                    while !stop.load(Ordering::Relaxed) {
                        house.decrypt();
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                });
            });
        }
        wait_until("the busy one to be at it", || done.load(Ordering::Relaxed) > 500);
        let waits = house.waits(300);
        drop(end);
        waits
    });
    println!("neighbours: quiet: {quiet}");
    println!("neighbours: beside 48 decryptions at once of another user: {beside}");
    assert!(beside.at(1.0) < BOUND, "{beside}");
}

/// Ends what runs beside it, also where something fails.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
