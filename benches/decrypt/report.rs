//! The figures, and how they are shown.

use std::fmt;

use serde::Serialize;

use crate::load::Run;
use crate::machine::{Machine, Memory};

/// Everything that one run of the bench has found.
#[derive(Serialize)]
pub struct Report {
    pub machine: Machine,
    /// Private operations per second by `openssl speed rsa2048`.
    pub openssl: Option<f64>,
    /// The bare operation on one thread, before and after all else, and on two.
    pub one: Figures,
    pub two: Figures,
    /// The bare operation on a thread that is woken for each.
    pub woken: Figures,
    /// Whether the clients run ahead of everything else.
    pub ahead: bool,
    pub sockets: Vec<Socket>,
    pub half_load: Paced,
    pub beside: Beside,
    pub startup: Startup,
    /// Memory after a start, and after all the load.
    pub idle: Idle,
    pub loaded: Idle,
}

/// Of one way to decrypt.
#[derive(Serialize)]
pub struct Figures {
    pub per_second: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// Processor time of one operation; through the socket, of both processes together.
    pub cpu_ms: f64,
}

impl Figures {
    pub fn mean(&self, other: &Self) -> Self {
        let mean = |one, other| f64::midpoint(one, other);
        Self {
            per_second: mean(self.per_second, other.per_second),
            p50_ms: mean(self.p50_ms, other.p50_ms),
            p99_ms: mean(self.p99_ms, other.p99_ms),
            cpu_ms: mean(self.cpu_ms, other.cpu_ms),
        }
    }
}

/// Through the socket.
#[derive(Serialize)]
pub struct Socket {
    pub connections: usize,
    #[serde(flatten)]
    pub figures: Figures,
    /// Over the bare operation on one thread.
    pub cpu_over_bare: f64,
    /// Over the bare operation on two threads, which share what two siblings of a core share.
    pub cpu_over_bare_two: f64,
    /// Of what two bare threads do, in the time that the clients leave to the appliance.
    pub throughput_share: f64,
    pub p50_over_bare: f64,
    pub clients_cpu_ms: f64,
    pub others_busy: f64,
    pub threads_ms: Vec<(String, f64)>,
}

impl Socket {
    pub fn of(run: Run, bare: &Figures, two: &Figures) -> Self {
        let Run { connections, figures, clients_cpu_ms, others_busy, threads_ms } = run;
        // The clients' processor time, as a share of two processors.
        let clients = figures.per_second * clients_cpu_ms / 1e3 / 2.0;
        Self {
            connections,
            cpu_over_bare_two: figures.cpu_ms / two.cpu_ms,
            throughput_share: figures.per_second / (1.0 - clients) / two.per_second,
            cpu_over_bare: figures.cpu_ms / bare.cpu_ms,
            p50_over_bare: figures.p50_ms / bare.p50_ms,
            figures,
            clients_cpu_ms,
            others_busy,
            threads_ms,
        }
    }
}

/// At half of the most that the appliance did, on eight connections.
#[derive(Serialize)]
pub struct Paced {
    pub per_second: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

/// Of `GET /v1/status` while eight connections decrypt.
#[derive(Serialize)]
pub struct Beside {
    pub p50_ms: f64,
    pub p99_ms: f64,
}

/// Milliseconds from exec to the first 200 of health.
#[derive(Serialize)]
pub struct Startup {
    pub least_ms: f64,
    pub median_ms: f64,
    pub most_ms: f64,
}

#[derive(Serialize)]
pub struct Idle {
    pub both_rss_mib: f64,
    pub front: Memory,
    pub custody: Memory,
}

/// p50 and p99 in milliseconds, of nanoseconds.
pub fn percentiles(latencies: &mut [u32]) -> (f64, f64) {
    latencies.sort_unstable();
    let at = |share: f64| {
        let index = (latencies.len() as f64 * share) as usize;
        latencies.get(index.min(latencies.len() - 1)).map_or(0.0, |ns| f64::from(*ns) / 1e6)
    };
    (at(0.50), at(0.99))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { cpu, avx512_ifma, cores, kernel, load_before, fdatasync_ms, wake_up_ms } =
            &self.machine;
        let ifma = if *avx512_ifma { "with" } else { "without" };
        writeln!(f, "RSA-2048 OAEP decryption, SHA-256")?;
        writeln!(f, "{cpu}, {cores} cores, {ifma} AVX512-IFMA, Linux {kernel}")?;
        writeln!(
            f,
            "load before {load_before}; write and fdatasync {fdatasync_ms:.3} ms; \
             a wake-up {wake_up_ms:.3} ms"
        )?;
        let ahead = if self.ahead { "ahead of all others" } else { "in line with all others" };
        writeln!(f, "clients run {ahead}\n")?;
        writeln!(
            f,
            "{:<24}{:>8}{:>9}{:>9}{:>11}{:>11}{:>11}{:>11}{:>11}{:>11}{:>8}",
            "",
            "ops/s",
            "p50 ms",
            "p99 ms",
            "CPU ms/op",
            "CPU/bare",
            "CPU/two",
            "share/two",
            "p50/bare",
            "clients ms",
            "others"
        )?;
        if let Some(openssl) = self.openssl {
            writeln!(f, "{:<24}{openssl:>8.0}{:>9.3}", "openssl speed rsa2048", 1e3 / openssl)?;
        }
        line(f, "bare, 1 thread", &self.one)?;
        writeln!(f)?;
        line(f, "bare, 2 threads", &self.two)?;
        writeln!(f)?;
        line(f, "bare, woken for each", &self.woken)?;
        writeln!(f)?;
        for socket in &self.sockets {
            let many = if socket.connections == 1 { "" } else { "s" };
            line(f, &format!("socket, {} connection{many}", socket.connections), &socket.figures)?;
            writeln!(
                f,
                "{:>11.2}{:>11.2}{:>11.2}{:>11.2}{:>11.3}{:>8.2}",
                socket.cpu_over_bare,
                socket.cpu_over_bare_two,
                socket.throughput_share,
                socket.p50_over_bare,
                socket.clients_cpu_ms,
                socket.others_busy
            )?;
        }
        let Paced { per_second, p50_ms, p99_ms } = &self.half_load;
        let times = p99_ms / self.one.p50_ms;
        writeln!(
            f,
            "\nat {per_second:.0} ops/s, half of the most: p50 {p50_ms:.3} ms, p99 {p99_ms:.3} ms \
             ({times:.1} times the bare operation)"
        )?;
        let Beside { p50_ms, p99_ms } = &self.beside;
        writeln!(f, "status while 8 connections decrypt: p50 {p50_ms:.3} ms, p99 {p99_ms:.3} ms")?;
        writeln!(f, "\nCPU by thread, µs per decryption")?;
        for socket in &self.sockets {
            let of = |(name, ms): &(String, f64)| format!("{name} {:.1}", ms * 1e3);
            let threads: Vec<String> = socket.threads_ms.iter().map(of).collect();
            writeln!(f, "{:>4} connections  {}", socket.connections, threads.join(", "))?;
        }
        writeln!(f)?;
        memory(f, "idle after the start", &self.idle)?;
        memory(f, "idle after the load", &self.loaded)?;
        let Startup { least_ms, median_ms, most_ms } = &self.startup;
        writeln!(f, "exec to ready: {median_ms:.0} ms ({least_ms:.0} to {most_ms:.0})")
    }
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, figures: &Figures) -> fmt::Result {
    let Figures { per_second, p50_ms, p99_ms, cpu_ms } = figures;
    write!(f, "{name:<24}{per_second:>8.0}{p50_ms:>9.3}{p99_ms:>9.3}{cpu_ms:>11.4}")
}

fn memory(f: &mut fmt::Formatter<'_>, when: &str, idle: &Idle) -> fmt::Result {
    let Idle { both_rss_mib, front, custody } = idle;
    let of = |m: &Memory| {
        let Memory { rss_mib, anonymous_mib, file_mib } = m;
        format!("{rss_mib:.1} MiB (anonymous {anonymous_mib:.1}, file {file_mib:.1})")
    };
    writeln!(f, "{when}: {both_rss_mib:.1} MiB; front {}, custody {}", of(front), of(custody))
}
