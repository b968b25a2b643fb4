//! How far something is, on stderr: a bar on a terminal, a line now and then elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Cells of the bar.
const WIDTH: u64 = 32;

/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// What has been shown so far.
pub struct Progress {
    wanted: bool,
    terminal: bool,
    drawn: bool,
    all: u64,
    last: Option<(Instant, String)>,
}

impl Progress {
    /// Shows nothing at all unless it is `wanted`.
    pub fn new(wanted: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { wanted, terminal, drawn: false, all: 0, last: None }
    }

    /// So many are done of so many; there may be more done than there were at the beginning.
    pub fn show(&mut self, done: u64, all: u64) {
        self.all = all.max(done);
        let text = format!("{:3} %  {done} of {all} keys", percent(done, all));
        if self.terminal {
            let filled = WIDTH * percent(done, all) / 100;
            let cell = |at| if at < filled { '#' } else { '.' };
            let bar: String = (0..WIDTH).map(cell).collect();
            self.draw(&format!("[{bar}] {text}"));
        } else {
            self.line(text.trim_start());
        }
    }

    /// It does not go on at the moment.
    pub fn waiting(&mut self, what: &str) {
        let text = format!("waiting for: {}", super::output::plain(what));
        if self.terminal { self.draw(&text) } else { self.line(&text) }
    }

    /// All of it is done: what was shown ends with 100 %, and stays.
    pub fn finish(&mut self) {
        if !self.drawn && self.last.is_none() {
            return;
        }
        let all = self.all;
        self.last = None;
        self.show(all, all);
        if self.drawn {
            let _ = writeln!(std::io::stderr());
            self.drawn = false;
        }
    }

    /// Leaves the line that the bar stood on.
    pub fn end(&mut self) {
        if self.drawn {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
        self.drawn = false;
    }

    fn draw(&mut self, text: &str) {
        if self.wanted {
            let _ = write!(std::io::stderr(), "\r\x1b[K{text}");
            let _ = std::io::stderr().flush();
            self.drawn = true;
        }
    }

    fn line(&mut self, text: &str) {
        let now = Instant::now();
        let due = self
            .last
            .as_ref()
            .is_none_or(|(at, known)| now.duration_since(*at) >= LINE_EVERY && known != text);
        if self.wanted && due {
            let _ = writeln!(std::io::stderr(), "{text}");
            self.last = Some((now, text.to_owned()));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whole percent, never 100 before all is done.
fn percent(done: u64, all: u64) -> u64 {
    if done >= all { 100 } else { done.saturating_mul(100) / all }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percents_end_at_the_end() {
        for (done, all, expected) in
            [(0, 0, 100), (0, 7, 0), (1, 3, 33), (999, 1000, 99), (1000, 1000, 100), (9, 7, 100)]
        {
            assert_eq!(percent(done, all), expected, "{done} of {all}");
        }
    }
}
