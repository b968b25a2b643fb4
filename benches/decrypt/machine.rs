//! What the kernel knows: the machine, and what processes cost it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

/// Where the figures come from.
#[derive(Serialize)]
pub struct Machine {
    pub cpu: String,
    /// RSA is more than twice as fast with these instructions.
    pub avx512_ifma: bool,
    pub cores: usize,
    pub kernel: String,
    /// Processes that waited for a processor in the minute before, on average.
    pub load_before: String,
    /// Median of appending 1 KiB and syncing it, where the trail is written.
    pub fdatasync_ms: f64,
    /// From a byte written into a socket to the return of the other thread's read, at the median:
    /// what it costs here that a thread which slept goes on. A request through the socket needs four
    /// of them one after the other.
    pub wake_up_ms: f64,
}

pub fn describe(directory: &Path) -> Machine {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |name| {
        let line = info.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let word = |path| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.split_whitespace().next().unwrap_or("unknown").to_owned()
    };
    Machine {
        cpu: value("model name").unwrap_or_else(|| "unknown".to_owned()),
        avx512_ifma: value("flags").is_some_and(|flags| flags.contains("avx512ifma")),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        kernel: word("/proc/sys/kernel/osrelease"),
        load_before: word("/proc/loadavg"),
        fdatasync_ms: fdatasync_ms(directory),
        wake_up_ms: wake_up_ms(),
    }
}

/// Two threads send a byte to and fro, each asleep while it is the other's turn.
fn wake_up_ms() -> f64 {
    const ROUNDS: usize = 2000;
    let (mut here, mut there) = UnixStream::pair().expect("a pair");
    let echo = std::thread::spawn(move || {
        let mut byte = [0];
        while there.read(&mut byte).is_ok_and(|length| length == 1) {
            there.write_all(&byte).expect("sent back");
        }
    });
    let mut byte = [1];
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            // As long as the other thread needs to fall asleep, and the processor with it.
            std::thread::sleep(Duration::from_micros(200));
            let started = Instant::now();
            here.write_all(&byte).expect("sent");
            here.read_exact(&mut byte).expect("came back");
            started.elapsed().as_secs_f64() * 1e3 / 2.0
        })
        .collect();
    drop(here);
    echo.join().expect("it ends");
    times.sort_by(f64::total_cmp);
    times[ROUNDS / 2]
}

fn fdatasync_ms(directory: &Path) -> f64 {
    let mut file = tempfile::tempfile_in(directory).expect("a file");
    let mut times: Vec<f64> = (0..200)
        .map(|_| {
            let started = Instant::now();
            file.write_all(&[b'x'; 1024]).expect("written");
            file.sync_data().expect("synced");
            started.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Resident memory of a process.
#[derive(Serialize)]
pub struct Memory {
    pub rss_mib: f64,
    /// Of that, memory that is nobody else's: no file stands behind it.
    pub anonymous_mib: f64,
    /// Of that, pages of files: programs and libraries, which both processes share, and secret memory.
    pub file_mib: f64,
}

pub fn memory(pid: u32) -> Memory {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let mib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("in status");
        let kib = line.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok());
        kib.expect("a number of KiB") / 1024.0
    };
    Memory { rss_mib: mib("VmRSS:"), anonymous_mib: mib("RssAnon:"), file_mib: mib("RssFile:") }
}

/// Ticks of the clock that /proc counts in, each of this length (USER_HZ is 100 everywhere).
const TICK: Duration = Duration::from_millis(10);

/// Processor time so far of some processes, with their threads that have ended.
pub fn cpu(pids: &[u32]) -> Duration {
    let ticks = pids.iter().map(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
        // The name in parentheses may hold anything; utime and stime are fields 14 and 15.
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let fields = rest.split_whitespace().skip(11).take(2);
        fields.map(|field| field.parse::<u32>().expect("ticks")).sum::<u32>()
    });
    TICK * ticks.sum::<u32>()
}

/// Processor time so far of everything that runs on this machine.
pub fn busy() -> Duration {
    let stat = fs::read_to_string("/proc/stat").expect("/proc is mounted");
    let line = stat.lines().next().unwrap_or_default();
    let fields: Vec<u32> =
        line.split_whitespace().skip(1).map(|field| field.parse().unwrap_or(0)).collect();
    // user nice system idle iowait irq softirq
    let at = |index: usize| fields.get(index).copied().unwrap_or(0);
    TICK * (at(0) + at(1) + at(2) + at(5) + at(6))
}

/// Processor time so far of each kind of thread: its name without numbers.
pub struct Threads(BTreeMap<String, Duration>);

impl Threads {
    pub fn of(pids: &[u32]) -> Self {
        let mut all = BTreeMap::new();
        for pid in pids {
            for task in fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten() {
                let read = |file| fs::read_to_string(task.path().join(file)).unwrap_or_default();
                let name = read("comm");
                let name = name.trim_end().trim_end_matches(|c: char| c.is_ascii_digit());
                let name = name.trim_end_matches('-').to_owned();
                let run =
                    read("schedstat").split_whitespace().next().and_then(|ns| ns.parse().ok());
                *all.entry(name).or_default() += Duration::from_nanos(run.unwrap_or(0));
            }
        }
        Self(all)
    }

    /// What each has taken since, the most first.
    pub fn since(self, pids: &[u32], each_ms: impl Fn(Duration) -> f64) -> Vec<(String, f64)> {
        let before = |name| self.0.get(name).copied().unwrap_or_default();
        let now = Self::of(pids).0;
        let taken = now.iter().map(|(name, now)| (name.clone(), each_ms(*now - before(name))));
        let mut taken: Vec<(String, f64)> = taken.filter(|(_, ms)| *ms > 0.0005).collect();
        taken.sort_by(|(_, one), (_, other)| other.total_cmp(one));
        taken
    }
}
