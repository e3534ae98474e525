use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// What the link has seen; each may be read and registered at any time.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    pub streams_up: Gauge,
    pub stream_drops: Counter,
    pub bad_mac: Counter,
    pub malformed: Counter,
    pub copies: Counter,
    pub old_term: Counter,
    pub orders: Counter,
    pub sent: Counter,
    pub unreachable: Counter,
    pub refused: Counter,
}

impl Counters {
    pub fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("reroute_meta_link");
        r.register("streams_up", "Push streams from Meta that are up", self.streams_up.clone());
        r.register("stream_drops", "Push streams that broke or fell silent", self.stream_drops.clone());
        r.register("bad_mac", "Lines and answers whose MAC was wrong; dropped", self.bad_mac.clone());
        r.register("malformed", "Lines and answers that could not be read; dropped", self.malformed.clone());
        r.register("copies", "Orders that had come by another stream already", self.copies.clone());
        r.register("old_term", "Orders of a Meta term that is over; dropped", self.old_term.clone());
        r.register("orders", "Orders handed to the agent", self.orders.clone());
        r.register("messages", "Messages sent to Meta", self.sent.clone());
        r.register("unreachable", "Messages no Meta address answered in time", self.unreachable.clone());
        r.register("refused", "Messages Meta refused by name", self.refused.clone());
    }
}
