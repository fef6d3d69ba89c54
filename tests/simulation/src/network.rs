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
    /// Where it stands among the active ones; `NONE` where it does not.
    place: u32,
}

const NONE: u32 = u32::MAX;

/// A flow under way, with all that each step looks at.
#[derive(Debug, Clone, Copy)]
struct Active {
    flow: FlowId,
    hops: [LinkId; HOPS_MAX],
    count: u8,
    /// Bytes a second.
    rate: f64,
    /// Bytes until [`Network::advance`] tells of it.
    left: f64,
}

impl Active {
    fn hops(&self) -> &[LinkId] {
        &self.hops[..usize::from(self.count)]
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Link {
    left: f64,
    share: f64,
    /// Flows that are not fixed yet.
    open: u32,
    /// Some flow of this link is held back more elsewhere.
    slack: bool,
}

#[derive(Debug, Default)]
pub struct Network {
    /// Bytes a second of each link.
    capacities: Vec<f64>,
    links: Vec<Link>,
    flows: Vec<Flow>,
    active: Vec<Active>,
    /// Links that active flows cross, and places of flows that are not fixed, while rates are
    /// computed.
    crossed: Vec<LinkId>,
    open: Vec<u32>,
    dirty: bool,
}

impl Network {
    pub fn add_link(&mut self, bytes_per_second: f64) -> LinkId {
        self.capacities.push(bytes_per_second);
        self.links.push(Link::default());
        (self.links.len() - 1) as LinkId
    }

    /// A flow over these links, at rest.
    pub fn add_flow(&mut self, hops: &[LinkId]) -> FlowId {
        let mut fixed = [0; HOPS_MAX];
        fixed[..hops.len()].copy_from_slice(hops);
        self.flows.push(Flow { hops: fixed, count: hops.len() as u8, place: NONE });
        (self.flows.len() - 1) as FlowId
    }

    /// Begins to send `left` bytes, unless it sends already.
    pub fn start(&mut self, flow: FlowId, left: f64) {
        let found = &mut self.flows[flow as usize];
        if found.place == NONE {
            found.place = self.active.len() as u32;
            let (hops, count) = (found.hops, found.count);
            self.active.push(Active { flow, hops, count, rate: 0.0, left });
            self.dirty = true;
        }
    }

    pub fn stop(&mut self, flow: FlowId) {
        let place = std::mem::replace(&mut self.flows[flow as usize].place, NONE);
        if place == NONE {
            return;
        }
        self.active.swap_remove(place as usize);
        if let Some(moved) = self.active.get(place as usize) {
            self.flows[moved.flow as usize].place = place;
        }
        self.dirty = true;
    }

    pub fn is_idle(&self) -> bool {
        self.active.is_empty()
    }

    /// The bytes still to go of a flow under way.
    pub fn left(&mut self, flow: FlowId) -> Option<&mut f64> {
        let place = self.flows[flow as usize].place;
        self.active.get_mut(place as usize).map(|active| &mut active.left)
    }

    /// Lets all flow for so long. Of each that sent what was left, `sent` hears with the bytes that
    /// it had for it; it says what is left then, or that the flow ends.
    pub fn advance(&mut self, seconds: f64, mut sent: impl FnMut(FlowId, f64, f64) -> Option<f64>) {
        self.share();
        let mut ended = Vec::new();
        for active in &mut self.active {
            let budget = active.rate * seconds;
            if budget < active.left {
                active.left -= budget;
                continue;
            }
            match sent(active.flow, active.left, budget) {
                Some(left) => active.left = left,
                None => ended.push(active.flow),
            }
        }
        ended.into_iter().for_each(|flow| self.stop(flow));
    }

    /// Computes every active flow's rate, where anything changed.
    fn share(&mut self) {
        if !std::mem::take(&mut self.dirty) {
            return;
        }
        for link in self.crossed.drain(..) {
            self.links[link as usize].open = 0;
        }
        for active in &self.active {
            for &hop in active.hops() {
                let link = &mut self.links[hop as usize];
                if link.open == 0 {
                    link.left = self.capacities[hop as usize];
                    self.crossed.push(hop);
                }
                link.open += 1;
            }
        }
        self.open.clear();
        self.open.extend(0..self.active.len() as u32);
        for round in 0..ROUNDS_MAX {
            self.offer();
            if round + 1 == ROUNDS_MAX {
                break;
            }
            self.fix();
            if self.open.is_empty() {
                break;
            }
        }
    }

    /// Each open flow gets the least share among its links as its rate so far.
    fn offer(&mut self) {
        for &link in &self.crossed {
            let link = &mut self.links[link as usize];
            link.share = (link.left / f64::from(link.open)).max(0.0);
            link.slack = false;
        }
        for &place in &self.open {
            let active = &mut self.active[place as usize];
            let shares = active.hops().iter().map(|&hop| self.links[hop as usize].share);
            let least = shares.fold(f64::INFINITY, f64::min);
            active.rate = least;
            for &hop in active.hops() {
                let link = &mut self.links[hop as usize];
                link.slack |= least < link.share * (1.0 - EPSILON);
            }
        }
    }

    /// Fixes the flows of links that hold all their open flows back.
    fn fix(&mut self) {
        let (active, links) = (&self.active, &mut self.links);
        self.open.retain(|&place| {
            let active = &active[place as usize];
            let held = active.hops().iter().any(|&hop| {
                let link = &links[hop as usize];
                !link.slack && link.share <= active.rate * (1.0 + EPSILON)
            });
            if held {
                for &hop in active.hops() {
                    let link = &mut links[hop as usize];
                    link.left -= active.rate;
                    link.open -= 1;
                }
            }
            !held
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(network: &Network, flow: FlowId) -> f64 {
        let found = network.active.iter().find(|active| active.flow == flow);
        found.map_or(0.0, |active| active.rate)
    }

    #[test]
    fn what_is_sent_is_told_once_and_the_rest_waits() {
        let mut network = Network::default();
        let line = network.add_link(10.0);
        let (short, long) = (network.add_flow(&[line]), network.add_flow(&[line]));
        network.start(short, 4.0);
        network.start(long, 100.0);
        let mut told = Vec::new();
        network.advance(1.0, |flow, left, budget| {
            told.push((flow, left, budget));
            None
        });
        assert_eq!(told, [(short, 4.0, 5.0)]);
        network.advance(1.0, |_, _, _| None);
        assert_eq!(network.left(short), None);
        assert_eq!(network.left(long), Some(&mut 85.0));
    }

    #[test]
    fn what_one_link_holds_back_others_share() {
        let mut network = Network::default();
        let (thin, wide) = (network.add_link(2.0), network.add_link(10.0));
        let both = network.add_flow(&[thin, wide]);
        let held = network.add_flow(&[thin]);
        let free = network.add_flow(&[wide]);
        [both, held, free].into_iter().for_each(|flow| network.start(flow, 100.0));
        network.share();
        assert_eq!([both, held, free].map(|flow| rate(&network, flow)), [1.0, 1.0, 9.0]);
        network.stop(held);
        network.share();
        assert_eq!([both, held, free].map(|flow| rate(&network, flow)), [2.0, 0.0, 8.0]);
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
                network.start(flow, 1.0);
                crossing[up as usize].push(flow);
                crossing[down as usize].push(flow);
            }
        }
        network.share();
        for (at, flows) in crossing.iter().enumerate() {
            let carried: f64 = flows.iter().map(|&flow| rate(&network, flow)).sum();
            assert!(carried <= (at + 1) as f64 * (1.0 + 1e-6), "link {at} carries {carried}");
        }
    }
}
