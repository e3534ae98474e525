//! A server's side with a sensor, a client's side, and connections between the two.

use crate::frames::{CLIENT, LOCAL, REPLY_HEAD, SERVICE, WRITE, bytes, call_head, pulse, reply_head, sealed};
use crate::programs::{BOOT, HOST, KEY, SCVM, admit, settings};
use crate::space::{PRIORITY, Space, Wire, fifo};
use anyhow::{Context, bail, ensure};
use reroute_agent::clock::now;
use reroute_agent::config::XdpMode;
use reroute_agent::sensor::{Events, Sensor};
use reroute_common::event::Event;
use reroute_common::flow::{Flow, state};
use reroute_common::pulse::PORT as PULSE_PORT;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// How long an event is waited for. Longer than any limit.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// One segment per call.
const ARGUMENTS: u32 = 512;

pub struct World {
    pub wire: Wire,
    pub sensor: Sensor,
    events: Events,
    runtime: Runtime,
    pub listener: Option<TcpListener>,
    pulses: Arc<AtomicBool>,
}

impl World {
    pub fn new(space: &Space) -> anyhow::Result<World> {
        let wire = Wire::new()?;
        let mut sensor = Sensor::start(settings(space.pins("detect"), "s0", XdpMode::Native)?)?;
        admit(&sensor)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let events = {
            let _guard = runtime.enter();
            sensor.events()?
        };
        let mut world =
            World { wire, sensor, events, runtime, listener: None, pulses: Arc::new(AtomicBool::new(true)) };
        world.listen()?;
        world.pulse()?;
        world.until("the listener to be seen", |w| Ok(w.sensor.server()?.listening == 1))?;
        Ok(world)
    }

    pub fn attached(&self) -> String {
        self.sensor.attachments().iter().map(|a| format!("{}, {}", a.ingress, a.egress)).collect()
    }

    pub fn listen(&mut self) -> anyhow::Result<()> {
        self.listener = Some(TcpListener::bind((std::net::Ipv4Addr::from(SERVICE), 2049))?);
        Ok(())
    }

    /// Pulses every 10 ms from the client's side, as a host sends them to its active server.
    fn pulse(&self) -> anyhow::Result<()> {
        let socket = self.wire.client.run(|| UdpSocket::bind((std::net::Ipv4Addr::from(CLIENT), 0)))??;
        socket.connect((std::net::Ipv4Addr::from(LOCAL), PULSE_PORT))?;
        let go_on = self.pulses.clone();
        std::thread::Builder::new().name("pulses".into()).spawn(move || {
            if let Err(why) = fifo(PRIORITY + 1) {
                eprintln!("pulses: {why:#}");
            }
            let mut pulse = pulse(HOST.0, SCVM.0, BOOT, 1);
            let mut next = Instant::now();
            while go_on.load(Ordering::Relaxed) {
                pulse.seq += 1;
                pulse.scvm_stamp = now().0;
                let _ = socket.send(&bytes(&sealed(&pulse, KEY)));
                next += PULSE_INTERVAL;
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        })?;
        Ok(())
    }

    pub fn until(
        &self,
        what: &str,
        mut condition: impl FnMut(&World) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self)? {
            ensure!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// The next event that `matches`; others are left behind.
    pub fn event(&mut self, name: &str, matches: impl Fn(&Event) -> bool) -> anyhow::Result<Event> {
        let events = &mut self.events;
        self.runtime.block_on(async {
            let wanted = async {
                loop {
                    let event = events.next().await?;
                    if matches(&event) {
                        return anyhow::Ok(event);
                    }
                }
            };
            match tokio::time::timeout(PATIENCE, wanted).await {
                Ok(event) => event,
                Err(_) => bail!("no such event: {name} was not told within {PATIENCE:?}"),
            }
        })
    }

    /// Waits until nothing of a trial is left: no call waits, nobody is silent. Events of it are thrown away.
    pub fn settle(&mut self) -> anyhow::Result<()> {
        if self.listener.is_none() {
            self.listen()?;
        }
        self.until("the end of a trial", |w| {
            let server = w.sensor.server()?;
            Ok(server.waiting == 0
                && server.silent == 0
                && server.stalled_flows == 0
                && server.listening == 1)
        })?;
        while self.events.try_next().is_some() {}
        Ok(())
    }

    /// The line of the flow table that a connection has.
    pub fn line_of(&self, pair: &Pair) -> anyhow::Result<u32> {
        let port = pair.client_port()?;
        let open = |f: &Flow| f.state == state::OPEN && f.key.remote_port == port;
        let line = self.sensor.flows()?.into_iter().find(|(_, flow)| open(flow));
        Ok(line.context("the connection is not in the flow table")?.0)
    }

    /// A new connection that has done a few calls.
    pub fn connect(&self) -> anyhow::Result<Pair> {
        let listener = self.listener.as_ref().context("nobody listens")?;
        let client = self
            .wire
            .client
            .run(|| TcpStream::connect((std::net::Ipv4Addr::from(SERVICE), 2049)))?
            .context("connecting")?;
        let (server, _) = listener.accept()?;
        for socket in [&client, &server] {
            socket.set_nodelay(true)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.set_write_timeout(Some(PATIENCE))?;
        }
        let mut pair = Pair { client, server, xid: 0 };
        for _ in 0..3 {
            pair.exchange()?;
        }
        Ok(pair)
    }
}

pub const PULSE_INTERVAL: Duration = Duration::from_millis(10);

impl Drop for World {
    fn drop(&mut self) {
        self.pulses.store(false, Ordering::Relaxed);
    }
}

/// Both ends of a connection.
pub struct Pair {
    pub client: TcpStream,
    pub server: TcpStream,
    xid: u32,
}

impl Pair {
    /// The next call, as bytes.
    pub fn next_call(&mut self) -> Vec<u8> {
        self.xid += 1;
        let mut call = call_head(self.xid, WRITE, ARGUMENTS);
        call.resize(call.len() + ARGUMENTS as usize, 0x5a);
        call
    }
    /// The server takes a call in.
    pub fn take(&mut self) -> anyhow::Result<()> {
        let mut buffer = vec![0; call_head(0, WRITE, 0).len() + ARGUMENTS as usize];
        self.server.read_exact(&mut buffer).context("the server waits for a call")
    }
    pub fn reply(&self) -> Vec<u8> {
        reply_head(self.xid, 0)
    }
    /// The client takes a reply in.
    pub fn taken(&mut self) -> anyhow::Result<()> {
        self.client.read_exact(&mut [0; 4 + REPLY_HEAD as usize]).context("the client waits for a reply")
    }
    pub fn exchange(&mut self) -> anyhow::Result<()> {
        let call = self.next_call();
        self.client.write_all(&call)?;
        self.take()?;
        let reply = self.reply();
        self.server.write_all(&reply)?;
        self.taken()
    }
    pub fn client_port(&self) -> anyhow::Result<u16> {
        Ok(self.client.local_addr()?.port())
    }
    /// Both ends go without a word to each other, but for the RST.
    pub fn abort(self) -> anyhow::Result<()> {
        for socket in [&self.client, &self.server] {
            abort_on_close(socket)?;
        }
        Ok(())
    }
}

/// The socket's close will be a RST.
pub fn abort_on_close(socket: &TcpStream) -> anyhow::Result<()> {
    rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO)).context("SO_LINGER")
}
