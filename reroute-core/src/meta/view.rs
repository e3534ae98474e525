//! The session health view.

use super::SessionMaster;
use crate::ids::BootNs;
use crate::proto::{ClusterView, HostView, LoginView, SessionView};

impl SessionMaster {
    pub fn view(&self, now: BootNs) -> ClusterView {
        let sessions = self.settings.scvms.iter().filter_map(|info| {
            let s = self.sessions.get(&info.id)?;
            Some(SessionView {
                scvm: info.id,
                name: info.name.clone(),
                state: s.state,
                age_ns: now.since(s.since),
                keepalive_age_ns: s.renewed.map(|at| now.since(at)),
                incarnation: s.incarnation,
                health: s.health.clone(),
                reason: s.reason.clone(),
            })
        });
        let logins = self.hosts.values().filter_map(|h| {
            let login = h.record()?.login.clone();
            let holder = self.holder(&login, now);
            Some(LoginView { login, age_ns: now.since(h.since), holder, ghost: h.ghost })
        });
        let hosts = self.settings.hosts.iter().filter_map(|info| {
            let h = self.hosts.get(&info.id)?;
            Some(HostView {
                host: info.id,
                name: info.name.clone(),
                report: h.report.as_ref().map(|(r, _)| r.clone()),
                report_age_ns: h.report.as_ref().map(|(_, at)| now.since(*at)),
            })
        });
        ClusterView {
            cluster: self.settings.cluster.clone(),
            term: self.settings.term,
            sessions: sessions.collect(),
            logins: logins.collect(),
            hosts: hosts.collect(),
            blocks: self.running_blocks(now),
            alarms: self.twins.alarms(now),
        }
    }
}
