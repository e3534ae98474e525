//! Answers on the control socket.

use super::Supervisor;
use crate::control::{Reply, Request, Spec};
use anyhow::Context;
use rustix::process::Signal;
use serde_json::{Value, to_value};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Serves `socket` from now on, a thread per connection.
pub fn listen(supervisor: Arc<Supervisor>, socket: &Path) -> anyhow::Result<()> {
    let listener =
        UnixListener::bind(socket).with_context(|| format!("cannot listen at {}", socket.display()))?;
    std::thread::Builder::new().name("control".into()).spawn(move || {
        for stream in listener.incoming().flatten() {
            let supervisor = supervisor.clone();
            let _ = std::thread::Builder::new().name("request".into()).spawn(move || {
                let _ = serve(&supervisor, stream);
            });
        }
    })?;
    Ok(())
}

fn serve(supervisor: &Arc<Supervisor>, mut stream: UnixStream) -> anyhow::Result<()> {
    for line in BufReader::new(stream.try_clone()?).lines() {
        let request = serde_json::from_str(&line?);
        let down = matches!(request, Ok(Request::Down));
        let reply = match request.map_err(Into::into).and_then(|r| supervisor.answer(r)) {
            Ok(value) => Reply::Ok(value),
            Err(error) => Reply::Error(format!("{error:#}")),
        };
        let mut text = serde_json::to_string(&reply)?;
        text.push('\n');
        stream.write_all(text.as_bytes())?;
        if down {
            let _ = supervisor.end.send(());
        }
    }
    Ok(())
}

impl Supervisor {
    fn answer(self: &Arc<Self>, request: Request) -> anyhow::Result<Value> {
        Ok(match request {
            Request::Status => to_value(self.status())?,
            Request::Fault { name, target } => to_value(self.inject(&name, target.as_deref())?)?,
            Request::Heal { name, target } => to_value(self.heal(name.as_deref(), target.as_deref())?)?,
            Request::Run { spec } => to_value(self.run(spec)?)?,
            Request::Start { process, env } => {
                let mut spec = self.processes.spec(&process)?;
                spec.env.extend(env);
                to_value(self.run(spec)?)?
            }
            Request::Signal { process, signal } => {
                let signal = Signal::from_named_raw(signal).with_context(|| format!("no signal {signal}"))?;
                to_value(self.processes.signal(&process, signal)?)?
            }
            Request::Wait { process, within_ms } => {
                to_value(self.processes.wait(&process, Duration::from_millis(within_ms))?)?
            }
            Request::Down => Value::Null,
        })
    }

    pub(super) fn run(&self, spec: Spec) -> anyhow::Result<crate::control::ProcessStatus> {
        let ns = self.namespace(spec.node())?;
        self.processes.start(spec, ns, &self.root)
    }
}
