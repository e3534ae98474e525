//! The writer's loop: keeps calls outstanding, judges replies, answers commands.

use crate::block::{self, Header};
use crate::cli::Cli;
use crate::control::{Command, Inbox, Request};
use crate::libnfs::{Client, FILE_SYNC, Handle, Op, Reply};
use crate::metadata::{self, Lane};
use crate::record::{Kind, Record, Recorder};
use crate::report::{Counts, Report};
use crate::ring::{Finding, Ring};
use crate::session::{self, RECONNECT_PAUSE, open, poll_all};
use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// After an answer that is an error, or a call that was lost.
const RETRY_NS: u64 = 5_000_000;
/// Longest sleep of the loop.
const IDLE: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    Append(usize),
    Hot(usize),
    /// Of a slot of the hot ring, with the sequence that was acknowledged there.
    Read(usize, u64),
    Metadata,
}

/// A call without a reply.
struct Flight {
    op: Op,
    target: Target,
    kind: Kind,
    seq: u64,
    offset: u64,
    issued: u64,
    tries: u32,
    /// `Counts::reconnects` at its issue.
    reconnects: u64,
    /// It must be made again, not before then (CLOCK_BOOTTIME ns).
    retry_at: Option<u64>,
}

pub struct Writer {
    cli: Cli,
    client: Client,
    append: (Handle, Ring),
    hot: (Handle, Ring),
    metadata: Option<Lane>,
    dir: PathBuf,
    flights: BTreeMap<u64, Flight>,
    next_tag: u64,
    seq: u64,
    last_issue: u64,
    hot_turn: bool,
    next_read: usize,
    last_read: u64,
    recorder: Recorder,
    counts: Counts,
    findings: Vec<Finding>,
    connected: bool,
    /// No connection attempt before then.
    pause: Option<Instant>,
    started: u64,
}

pub fn now() -> u64 {
    reroute_agent::clock::now().0
}

impl Writer {
    /// Mounts and makes this writer's files.
    pub fn start(cli: Cli) -> anyhow::Result<Writer> {
        let name = format!("writer-{}", cli.id);
        let dir = cli.backing.join(&name);
        if !cli.backing.is_dir() {
            bail!(
                "--backing {} is not a directory: give the exported one, as seen locally",
                cli.backing.display()
            );
        }
        if dir.exists() {
            bail!("{} is left over from an earlier run: remove it, or give another --id", dir.display());
        }
        let log = cli.log.as_deref().map(File::create).transpose().context("--log")?;
        let mut client = session::mount(&cli.url, Duration::from_secs(cli.mount_seconds))?;
        let deadline = Instant::now() + Duration::from_secs(cli.mount_seconds);
        let root = client.root().clone();
        let top = session::make_dir(&mut client, &root, &name, deadline)?;
        let append_slots = usize::try_from(cli.max_bytes / block::SIZE as u64)?.max(cli.outstanding + 1);
        let hot_slots = cli.hot_slots.max(cli.outstanding + 1);
        let mut file = |name: &str, slots: usize| -> anyhow::Result<(Handle, Ring)> {
            let handle = session::make_file(&mut client, &top, name, deadline)?;
            Ok((handle, Ring::new(name, open(&dir.join(name))?, cli.id, slots)))
        };
        let append = file("append", append_slots)?;
        let hot = file("hot", hot_slots)?;
        let metadata = if cli.metadata {
            let (unstable, ring) = file("unstable", metadata::SLOTS)?;
            let names = session::make_dir(&mut client, &top, "names", deadline)?;
            Some(Lane::new(names, unstable, ring, cli.id))
        } else {
            None
        };
        let started = now();
        Ok(Writer {
            client,
            append,
            hot,
            metadata,
            dir,
            flights: BTreeMap::new(),
            next_tag: 1,
            seq: 0,
            last_issue: 0,
            hot_turn: false,
            next_read: 0,
            last_read: 0,
            recorder: Recorder::new(log),
            counts: Counts::default(),
            findings: Vec::new(),
            connected: true,
            pause: None,
            started,
            cli,
        })
    }

    /// Runs until stopped; gives the final report, and the request that stopped it, not answered yet.
    pub fn run(&mut self, inbox: &Inbox) -> anyhow::Result<(Report, Option<Request>)> {
        let end = self.started + self.cli.max_seconds * 1_000_000_000;
        let stop = loop {
            self.fill()?;
            self.turn(inbox)?;
            if let Some(stop) = self.commands(inbox)? {
                break Some(stop);
            }
            if now() >= end {
                break None;
            }
        };
        // Commands are still answered while outstanding calls are waited for.
        let deadline = now() + self.cli.drain_seconds * 1_000_000_000;
        while !self.flights.is_empty() && now() < deadline {
            self.retry()?;
            self.turn(inbox)?;
            while let Ok(request) = inbox.requests.try_recv() {
                self.answer(&request)?;
            }
        }
        let at = now();
        let mut found = self.append.1.check_all(at)?;
        found.extend(self.hot.1.check_all(at)?);
        if let Some(lane) = &mut self.metadata {
            found.extend(lane.check(at)?);
            let outstanding = self.flights.values().any(|f| f.target == Target::Metadata);
            lane.verify_names(&self.dir.join("names"), outstanding)?;
        }
        self.found(found);
        self.recorder.flush().context("--log")?;
        Ok((self.report(true), stop))
    }

    fn fill(&mut self) -> anyhow::Result<()> {
        self.retry()?;
        let at = now();
        let count = |kind| self.flights.values().filter(|f| f.kind == kind).count();
        let (mut appends, mut hots) = (count(Kind::Append), count(Kind::Hot));
        while appends + hots < self.cli.outstanding.max(1)
            && at.saturating_sub(self.last_issue) >= self.cli.interval_us * 1000
        {
            let seq = self.seq + 1;
            // As many of one as of the other outstanding, so that a late call is a hot one often enough.
            let hot = if appends == hots { self.hot_turn } else { hots < appends };
            let (handle, ring) = if hot { &mut self.hot } else { &mut self.append };
            let Some((slot, finding)) = ring.begin(seq, at)? else { break };
            let offset = Ring::offset(slot);
            let data = block::encode(Header { writer: self.cli.id, seq, offset });
            let op = Op::Write { file: handle.clone(), offset, data, stable: FILE_SYNC };
            let (target, kind) = match hot {
                true => (Target::Hot(slot), Kind::Hot),
                false => (Target::Append(slot), Kind::Append),
            };
            self.found(finding);
            self.seq = seq;
            self.hot_turn = !hot;
            self.last_issue = at;
            self.issue(op, target, kind, seq, offset)?;
            if hot { hots += 1 } else { appends += 1 }
        }
        self.read()?;
        if !self.flights.values().any(|f| f.target == Target::Metadata)
            && let Some(lane) = &mut self.metadata
        {
            let (call, finding) = lane.next(self.seq + 1, at)?;
            if call.kind == Kind::Unstable && call.seq == self.seq + 1 {
                self.seq += 1;
            }
            self.found(finding);
            self.issue(call.op, Target::Metadata, call.kind, call.seq, call.offset)?;
        }
        Ok(())
    }

    /// Keeps the READs outstanding.
    fn read(&mut self) -> anyhow::Result<()> {
        let mut outstanding = self.flights.values().filter(|f| f.kind == Kind::Read).count();
        while outstanding < self.cli.reads
            && now().saturating_sub(self.last_read) >= self.cli.interval_us * 1000
        {
            let Some((slot, acked)) = self.hot.1.readable(self.next_read) else { break };
            self.next_read = slot + 1;
            self.last_read = now();
            let offset = Ring::offset(slot);
            let op = Op::Read { file: self.hot.0.clone(), offset, count: block::SIZE as u32 };
            self.issue(op, Target::Read(slot, acked), Kind::Read, acked, offset)?;
            outstanding += 1;
        }
        Ok(())
    }

    fn issue(&mut self, op: Op, target: Target, kind: Kind, seq: u64, offset: u64) -> anyhow::Result<()> {
        let tag = self.next_tag;
        self.next_tag += 1;
        let flight = Flight {
            op: op.clone(),
            target,
            kind,
            seq,
            offset,
            issued: now(),
            tries: 1,
            reconnects: self.counts.reconnects,
            retry_at: None,
        };
        self.flights.insert(tag, flight);
        self.client.submit(tag, op)?;
        Ok(())
    }

    fn retry(&mut self) -> anyhow::Result<()> {
        let at = now();
        for (tag, flight) in &mut self.flights {
            if flight.retry_at.is_some_and(|t| t <= at) {
                flight.retry_at = None;
                flight.tries += 1;
                self.client.submit(*tag, flight.op.clone())?;
            }
        }
        Ok(())
    }

    /// Waits for the socket or a command, lets libnfs work, judges what came.
    fn turn(&mut self, inbox: &Inbox) -> anyhow::Result<()> {
        let paused =
            self.pause.and_then(|p| p.checked_duration_since(Instant::now())).filter(|d| !d.is_zero());
        let revents = self.wait(inbox, paused)?;
        if !revents.is_empty() {
            let whole = self.client.service(revents.bits() as i16);
            let connected = self.client.connected();
            if !connected {
                self.counts.connect_attempts += u64::from(!self.connected || !whole);
                self.counts.disconnects += u64::from(self.connected);
                self.pause = (!self.connected || !whole).then(|| Instant::now() + RECONNECT_PAUSE);
            } else if !self.connected {
                self.counts.reconnects += 1;
                self.pause = None;
            }
            self.connected = connected;
        }
        while let Some((tag, reply)) = self.client.take() {
            self.reply(tag, &reply)?;
        }
        Ok(())
    }

    fn wait(&self, inbox: &Inbox, paused: Option<Duration>) -> anyhow::Result<PollFlags> {
        let at = now();
        let mut timeout = paused.unwrap_or(IDLE).min(IDLE);
        if self.cli.interval_us > 0 {
            let last = if self.cli.reads > 0 { self.last_issue.min(self.last_read) } else { self.last_issue };
            let next = (last + self.cli.interval_us * 1000).saturating_sub(at);
            timeout = timeout.min(Duration::from_nanos(next.max(20_000)));
        }
        if let Some(retry) = self.flights.values().filter_map(|f| f.retry_at).min() {
            timeout = timeout.min(Duration::from_nanos(retry.saturating_sub(at)));
        }
        let wake = PollFd::new(&*inbox.wake, PollFlags::IN);
        let Some(fd) = self.client.fd().filter(|_| paused.is_none()) else {
            poll_all(&mut [wake], timeout)?;
            return Ok(if paused.is_none() { PollFlags::HUP } else { PollFlags::empty() });
        };
        let wanted = PollFlags::from_bits_truncate(self.client.events() as u16);
        let mut fds = [PollFd::from_borrowed_fd(fd, wanted), wake];
        poll_all(&mut fds, timeout)?;
        Ok(fds[0].revents())
    }

    fn reply(&mut self, tag: u64, reply: &Reply) -> anyhow::Result<()> {
        let completed = now();
        let Some(mut flight) = self.flights.remove(&tag) else {
            bail!("reply to call {tag}, which nobody made")
        };
        let (done, findings) = match flight.target {
            Target::Metadata => {
                let resent = flight.tries > 1 || flight.reconnects != self.counts.reconnects;
                match &mut self.metadata {
                    Some(lane) => lane.completed(reply, resent, completed)?,
                    None => (true, Vec::new()),
                }
            }
            Target::Read(slot, acked) => match reply {
                Reply::Data(bytes) => {
                    let good = self.hot.1.may_read(slot, acked, bytes);
                    self.counts.reads += u64::from(good);
                    self.counts.bad_reads += u64::from(!good);
                    (true, Vec::new())
                }
                _ => (false, Vec::new()),
            },
            Target::Append(slot) | Target::Hot(slot) => {
                let ring = if matches!(flight.target, Target::Hot(_)) {
                    &mut self.hot.1
                } else {
                    &mut self.append.1
                };
                match reply {
                    Reply::Written { count, committed, .. }
                        if *count as usize == block::SIZE && *committed == FILE_SYNC =>
                    {
                        (true, ring.acknowledged(slot, completed)?.into_iter().collect())
                    }
                    _ => (false, Vec::new()),
                }
            }
        };
        self.found(findings);
        if done {
            let (issued, tries) = (flight.issued, u8::try_from(flight.tries).unwrap_or(u8::MAX));
            let (seq, offset, kind) = (flight.seq, flight.offset, flight.kind);
            self.recorder.add(Record { issued, completed, seq, offset, kind, tries }).context("--log")?;
            return Ok(());
        }
        self.counts.refused(reply);
        flight.retry_at = Some(completed + RETRY_NS);
        self.flights.insert(tag, flight);
        Ok(())
    }

    fn found(&mut self, findings: impl IntoIterator<Item = Finding>) {
        for finding in findings {
            self.counts.found(finding.kind);
            if self.findings.len() < 64 {
                self.findings.push(finding);
            }
        }
    }

    /// Answers commands; gives the one that stops.
    fn commands(&mut self, inbox: &Inbox) -> anyhow::Result<Option<Request>> {
        while let Ok(request) = inbox.requests.try_recv() {
            if request.command == Command::Stop {
                return Ok(Some(request));
            }
            self.answer(&request)?;
        }
        Ok(None)
    }

    fn answer(&mut self, request: &Request) -> anyhow::Result<()> {
        let at = now();
        let text = match request.command {
            Command::Stop => return Ok(()),
            Command::Gap { from, to } => {
                let (from, to) = (from.max(self.started), if to == 0 { at } else { to });
                serde_json::to_string(&self.recorder.gap(from, to))?
            }
            Command::Snapshot => {
                // The append file is checked block by block as it comes round, and at the end: it may be long.
                let mut found = self.hot.1.check_all(at)?;
                if let Some(lane) = &mut self.metadata {
                    found.extend(lane.check(at)?);
                }
                self.found(found);
                serde_json::to_string(&self.report(false))?
            }
        };
        let _ = request.answer.send(text);
        Ok(())
    }

    fn report(&self, last: bool) -> Report {
        let at = now();
        let mut longest = self.recorder.longest();
        // What has not ended yet counts too.
        if let Some(open) = self.recorder.last().map(|t| (t, at.saturating_sub(t)))
            && !self.flights.is_empty()
            && open.1 > longest.longest_gap_ns
        {
            longest = crate::record::Gap { longest_gap_ns: open.1, from: open.0, to: at, ..longest };
        }
        Report {
            last,
            at,
            started: self.started,
            completed: self.recorder.completed(),
            longest_gap_ns: longest.longest_gap_ns,
            longest_gap_at: longest.from,
            last_completed_at: self.recorder.last(),
            outstanding: self.flights.len(),
            connected: self.connected,
            counts: self.counts.clone(),
            metadata: self.metadata.as_ref().map(|l| l.counts.clone()),
            findings: self.findings.clone(),
        }
    }
}
