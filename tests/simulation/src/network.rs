//! A network as a fluid: flows share links, each gets its max-min fair rate.
//!
//! A flow is the bytes from one host to another. It crosses the sender's line up, the receiver's
//! line down, and between zones both zones' uplinks. Rates are computed by progressive filling
//! (Bertsekas and Gallager, Data Networks, 6.5.2): links that hold all their flows back fix those
//! flows' rates, the rest share what is left.
//!
//! Invariants: no link ever carries more than its capacity; the same flows in the same order give
//! the same rates. Non-goals: packets, windows, slow start; a host's latency is the world's matter.

/// Rounds of filling; what is still open then keeps its (feasible) share.
const ROUNDS_MAX: usize = 8;
/// Links that one flow crosses at most: line up, zone up, zone down, line down.
const HOPS_MAX: usize = 4;
/// Shares this near count as equal.
const EPSILON: f64 = 1e-9;

pub type LinkId = u32;
pub type FlowId = u32;

#[derive(Debug, Clone, Copy)]
struct Flow {
    hops: [LinkId; HOPS_MAX],
    count: u8,
    /// Bytes a second.
    rate: f64,
    /// Where it stands among the active ones; `NONE` where it does not.
    place: u32,
}

const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy, Default)]
struct Link {
    /// Bytes a second.
    capacity: f64,
    left: f64,
    open: u32,
    share: f64,
    /// Some flow of this link is held back more elsewhere.
    slack: bool,
    round: u64,
}

#[derive(Debug, Default)]
pub struct Network {
    links: Vec<Link>,
    flows: Vec<Flow>,
    active: Vec<FlowId>,
    dirty: bool,
    rounds: u64,
}

impl Network {
    pub fn add_link(&mut self, bytes_per_second: f64) -> LinkId {
        self.links.push(Link { capacity: bytes_per_second, ..Link::default() });
        (self.links.len() - 1) as LinkId
    }

    pub fn set_capacity(&mut self, link: LinkId, bytes_per_second: f64) {
        self.links[link as usize].capacity = bytes_per_second;
        self.dirty = true;
    }

    /// A flow over these links, at rest.
    pub fn add_flow(&mut self, hops: &[LinkId]) -> FlowId {
        let mut fixed = [0; HOPS_MAX];
        fixed[..hops.len()].copy_from_slice(hops);
        self.flows.push(Flow { hops: fixed, count: hops.len() as u8, rate: 0.0, place: NONE });
        (self.flows.len() - 1) as FlowId
    }

    pub fn start(&mut self, flow: FlowId) {
        let found = &mut self.flows[flow as usize];
        if found.place == NONE {
            found.place = self.active.len() as u32;
            found.rate = 0.0;
            self.active.push(flow);
            self.dirty = true;
        }
    }

    pub fn stop(&mut self, flow: FlowId) {
        let place = self.flows[flow as usize].place;
        if place == NONE {
            return;
        }
        self.active.swap_remove(place as usize);
        if let Some(&moved) = self.active.get(place as usize) {
            self.flows[moved as usize].place = place;
        }
        let found = &mut self.flows[flow as usize];
        found.place = NONE;
        found.rate = 0.0;
        self.dirty = true;
    }

    pub fn active(&self) -> &[FlowId] {
        &self.active
    }

    /// Bytes a second, as of the last [`Self::share`].
    pub fn rate(&self, flow: FlowId) -> f64 {
        self.flows[flow as usize].rate
    }

    /// Computes every active flow's rate, where anything changed.
    pub fn share(&mut self) {
        if !std::mem::take(&mut self.dirty) {
            return;
        }
        self.rounds += 1;
        for &id in &self.active {
            let flow = &self.flows[id as usize];
            for &hop in &flow.hops[..usize::from(flow.count)] {
                let link = &mut self.links[hop as usize];
                if link.round != self.rounds {
                    (link.round, link.left, link.open) = (self.rounds, link.capacity, 0);
                }
                link.open += 1;
            }
        }
        let mut open = self.active.clone();
        for round in 0..ROUNDS_MAX {
            self.offer(&open);
            if round + 1 == ROUNDS_MAX {
                break;
            }
            self.fix(&mut open);
            if open.is_empty() {
                break;
            }
        }
    }

    /// Each open flow gets the least share among its links as its rate so far.
    fn offer(&mut self, open: &[FlowId]) {
        for &id in open {
            let flow = &self.flows[id as usize];
            for &hop in &flow.hops[..usize::from(flow.count)] {
                let link = &mut self.links[hop as usize];
                link.share = (link.left / f64::from(link.open)).max(0.0);
                link.slack = false;
            }
        }
        for &id in open {
            let flow = &mut self.flows[id as usize];
            let hops = &flow.hops[..usize::from(flow.count)];
            let shares = hops.iter().map(|&hop| self.links[hop as usize].share);
            let least = shares.fold(f64::INFINITY, f64::min);
            flow.rate = least;
            for &hop in hops {
                let link = &mut self.links[hop as usize];
                link.slack |= least < link.share * (1.0 - EPSILON);
            }
        }
    }

    /// Fixes the flows of links that hold all their open flows back.
    fn fix(&mut self, open: &mut Vec<FlowId>) {
        let (flows, links) = (&self.flows, &mut self.links);
        let mut fixed: Vec<FlowId> = Vec::new();
        open.retain(|&id| {
            let flow = &flows[id as usize];
            let mut hops = flow.hops[..usize::from(flow.count)].iter();
            let held = hops.any(|&hop| {
                let link = &links[hop as usize];
                !link.slack && link.share <= flow.rate * (1.0 + EPSILON)
            });
            if held {
                fixed.push(id);
            }
            !held
        });
        for id in fixed {
            let flow = &flows[id as usize];
            for &hop in &flow.hops[..usize::from(flow.count)] {
                let link = &mut links[hop as usize];
                link.left -= flow.rate;
                link.open -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_link_holds_back_others_share() {
        let mut network = Network::default();
        let (thin, wide) = (network.add_link(2.0), network.add_link(10.0));
        let both = network.add_flow(&[thin, wide]);
        let held = network.add_flow(&[thin]);
        let free = network.add_flow(&[wide]);
        [both, held, free].into_iter().for_each(|flow| network.start(flow));
        network.share();
        assert_eq!([both, held, free].map(|flow| network.rate(flow)), [1.0, 1.0, 9.0]);
        network.stop(held);
        network.share();
        assert_eq!([both, held, free].map(|flow| network.rate(flow)), [2.0, 0.0, 8.0]);
    }

    #[test]
    fn no_link_carries_more_than_it_can() {
        let mut network = Network::default();
        let links: Vec<LinkId> = (1..40).map(|n| network.add_link(f64::from(n))).collect();
        let mut crossing = vec![Vec::new(); links.len()];
        for n in 0..400_u32 {
            let (up, down) = (n * 7 % 39, (n * n + 5) % 39);
            if up != down {
                let flow = network.add_flow(&[links[up as usize], links[down as usize]]);
                network.start(flow);
                crossing[up as usize].push(flow);
                crossing[down as usize].push(flow);
            }
        }
        network.share();
        for (at, flows) in crossing.iter().enumerate() {
            let carried: f64 = flows.iter().map(|&flow| network.rate(flow)).sum();
            assert!(carried <= (at + 1) as f64 * (1.0 + 1e-6), "link {at} carries {carried}");
        }
    }
}
