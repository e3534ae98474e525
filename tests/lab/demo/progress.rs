//! What is being done and for how long: on a terminal one line that is kept up to date, else a line per phase.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

pub struct Progress {
    start: Instant,
    phase: Arc<Mutex<String>>,
    terminal: bool,
    ticker: Option<(mpsc::Sender<()>, std::thread::JoinHandle<()>)>,
}

const CLEAR: &str = "\r\x1b[K";

impl Default for Progress {
    fn default() -> Progress {
        Progress::new()
    }
}

impl Progress {
    pub fn new() -> Progress {
        let (start, phase) = (Instant::now(), Arc::new(Mutex::new(String::new())));
        let terminal = std::io::stderr().is_terminal();
        let shown = phase.clone();
        let ticker = terminal.then(|| {
            let (stop, stopped) = mpsc::channel::<()>();
            let thread = std::thread::spawn(move || {
                while stopped.recv_timeout(Duration::from_millis(100)) == Err(mpsc::RecvTimeoutError::Timeout)
                {
                    let phase = shown.lock().unwrap_or_else(PoisonError::into_inner);
                    if !phase.is_empty() {
                        eprint!("{CLEAR}{:6.1} s  {phase}", start.elapsed().as_secs_f32());
                        let _ = std::io::stderr().flush();
                    }
                }
            });
            (stop, thread)
        });
        Progress { start, phase, terminal, ticker }
    }

    pub fn phase(&self, text: &str) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = text.to_string();
        if !self.terminal {
            eprintln!("{:6.1} s  {text}", self.start.elapsed().as_secs_f32());
        }
    }

    /// A line that stays, on standard output.
    pub fn say(&self, text: &str) {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        phase.clear();
        if self.terminal {
            eprint!("{CLEAR}");
        }
        println!("{text}");
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.ticker.take() {
            drop(stop);
            let _ = thread.join();
            eprint!("{CLEAR}");
        }
    }
}
