//! What the shells do with requests and content: slots, the ledger, streams that share lines.

use super::*;

impl World {
    pub(super) fn asked(
        &mut self,
        from: Number,
        to: Number,
        request: RequestId,
        mut indices: Vec<u32>,
        insists: bool,
    ) {
        if !self.hosts[to].alive || !self.hosts[to].peers.contains(&from) {
            return;
        }
        match self.hosts[to].conduct {
            Conduct::Staller => return,
            Conduct::FreeRider => return self.refuse(from, to, request, RequestEnd::Busy),
            Conduct::Liar => {
                self.counts.wasted += u64::from(self.scenario.chunk_bytes);
                let wait = self.latency(to, from);
                if self.hosts[from].asked.remove(&request).is_some() {
                    self.later(wait, What::Message(to, from, Box::new(Event::Wrong { request })));
                }
                return;
            }
            Conduct::Honest => {}
        }
        let held = indices.iter().take_while(|&&index| self.hosts[to].held.contains(index));
        let count = held.count();
        if count == 0 {
            return self.refuse(from, to, request, RequestEnd::Failed);
        }
        let now = self.now;
        let far = self.is_far(from, to);
        let admission = self.hosts[to].uploads.begin(now, contact(from).peer, far);
        if let Admission::Busy { name_others } = admission {
            if name_others {
                self.name_others(to, from);
            }
            return self.refuse(from, to, request, RequestEnd::Busy);
        }
        indices.truncate(count);
        if self.is_node(to) && self.put_off(from, to, request, &mut indices, insists) {
            return self.end_upload(to, from);
        }
        if self.is_node(to) && self.scenario.storage > Duration::ZERO {
            let wait = self.scenario.storage.mul_f64(self.draw.share());
            return self.later(wait, What::Serve { from, to, request, indices });
        }
        self.send(from, to, request, &indices);
    }

    /// Leaves what this node gave to others, and tells of the rest; whether nothing is left.
    pub(super) fn put_off(
        &mut self,
        from: Number,
        node: Number,
        request: RequestId,
        indices: &mut Vec<u32>,
        insists: bool,
    ) -> bool {
        let (now, recipe, to) = (self.now, self.recipe, contact(from).peer);
        let ledger = &mut self.hosts[node].ledger;
        let mut others = Vec::new();
        indices.retain(|&index| {
            let given = ledger.give(now, recipe, index, to, insists);
            given.map_err(|by| others.push((index, by))).is_ok()
        });
        let wait = self.latency(node, from);
        self.counts.control += 36 * others.len() as u64;
        for (index, by) in others {
            let event = Event::Elsewhere { request, index, by };
            self.later(wait, What::Message(node, from, Box::new(event)));
        }
        if indices.is_empty() {
            self.hosts[from].asked.remove(&request);
            let end = RequestEnd::Done;
            self.later(wait, What::Message(node, from, Box::new(Event::Ended { request, end })));
        }
        indices.is_empty()
    }

    pub(super) fn send(&mut self, from: Number, to: Number, request: RequestId, indices: &[u32]) {
        let wanted = self.hosts[from].asked.contains_key(&request);
        if !self.hosts[to].alive || !self.hosts[to].peers.contains(&from) || !wanted {
            for &index in indices {
                self.hosts[to].ledger.take_back(self.recipe, index, contact(from).peer);
            }
            return self.end_upload(to, from);
        }
        let flow = self.stream(to, from);
        let count = indices.len();
        let stream = &mut self.streams[flow as usize];
        for (at, &index) in indices.iter().enumerate() {
            stream.queue.push_back(Piece { request, index, last: at + 1 == count });
        }
        self.network.start(flow, f64::from(self.scenario.chunk_bytes));
    }

    /// Those who get chunks from here now soon have what others ask for.
    pub(super) fn name_others(&mut self, busy: Number, to: Number) {
        let served: Vec<Number> = self.hosts[busy].uploads.served().map(number).collect();
        let others = served.into_iter().filter(|&other| other != to).take(NAMED);
        let members: Vec<Member> = others.map(|other| self.member(other)).collect();
        if !members.is_empty() {
            let frame = Frame::Peers { recipe: self.recipe, members };
            let peer = contact(busy).peer;
            self.message(busy, contact(to).peer, Event::Frame { peer, frame });
        }
    }

    pub(super) fn refuse(&mut self, from: Number, to: Number, request: RequestId, end: RequestEnd) {
        let wait = self.latency(to, from);
        self.hosts[from].asked.remove(&request);
        self.counts.control += 8;
        self.later(wait, What::Message(to, from, Box::new(Event::Ended { request, end })));
    }

    pub(super) fn stream(&mut self, from: Number, to: Number) -> FlowId {
        if let Some(&flow) = self.hosts[from].streams.get(&to) {
            return flow;
        }
        let (a, b) = (&self.hosts[from], &self.hosts[to]);
        let mut hops = vec![a.up];
        if self.is_far(from, to) {
            hops.extend(self.zone_up.get(self.zones[from]));
            hops.extend(self.zone_down.get(self.zones[to]));
        }
        hops.push(b.down);
        let flow = self.network.add_flow(&hops);
        self.streams.push(Stream { from, to, queue: VecDeque::new() });
        self.hosts[from].streams.insert(to, flow);
        flow
    }

    pub(super) fn cancel(&mut self, from: Number, to: Number, request: RequestId) {
        let Some(&flow) = self.hosts[to].streams.get(&from) else { return };
        let stream = &mut self.streams[flow as usize];
        let was = stream.queue.len();
        for piece in stream.queue.iter().filter(|piece| piece.request == request) {
            self.hosts[to].ledger.take_back(self.recipe, piece.index, contact(from).peer);
        }
        let whole = f64::from(self.scenario.chunk_bytes);
        if stream.queue.front().is_some_and(|piece| piece.request == request)
            && let Some(left) = self.network.left(flow)
        {
            self.counts.wasted += (whole - *left) as u64;
            *left = whole;
        }
        stream.queue.retain(|piece| piece.request != request);
        if stream.queue.len() == was {
            return;
        }
        if stream.queue.is_empty() {
            self.network.stop(flow);
        }
        self.end_upload(to, from);
    }

    pub(super) fn end_upload(&mut self, server: Number, client: Number) {
        self.hosts[server].uploads.end(contact(client).peer);
        self.invite(server);
    }

    pub(super) fn invite(&mut self, server: Number) {
        while let Some(next) = self.hosts[server].uploads.invite(self.now) {
            let peer = contact(server).peer;
            self.message(server, next, Event::Frame { peer, frame: Frame::Free });
        }
    }

    /// Content flows until `end`.
    pub(super) fn flow(&mut self, end: Duration) {
        let seconds = (end.saturating_sub(self.now)).as_secs_f64();
        if seconds == 0.0 || self.network.is_idle() {
            return;
        }
        let whole = f64::from(self.scenario.chunk_bytes);
        let mut sent: Vec<(Number, Number, Piece)> = Vec::new();
        let streams = &mut self.streams;
        self.network.advance(seconds, |flow, mut left, mut budget| {
            let stream = &mut streams[flow as usize];
            while budget >= left
                && let Some(piece) = stream.queue.pop_front()
            {
                budget -= left;
                left = whole;
                sent.push((stream.from, stream.to, piece));
            }
            (!stream.queue.is_empty()).then_some(left - budget)
        });
        for (from, to, piece) in sent {
            self.deliver(end, from, to, piece);
        }
    }

    pub(super) fn deliver(&mut self, end: Duration, from: Number, to: Number, piece: Piece) {
        let bytes = u64::from(self.scenario.chunk_bytes);
        self.hosts[from].sent += bytes;
        self.hosts[from].uploads.sent(end, bytes);
        if self.is_node(from) {
            self.counts.origin += bytes;
        }
        if self.is_far(from, to) {
            self.counts.zones_in[self.zones[to]] += bytes;
        }
        let Piece { request, index, last } = piece;
        let wait = self.latency(from, to);
        self.queue.push(end + wait, What::Arrive { to, from, request, index, last });
        if last {
            self.end_upload(from, to);
        }
    }

    pub(super) fn arrive(
        &mut self,
        to: Number,
        from: Number,
        request: RequestId,
        index: u32,
        last: bool,
    ) {
        let bytes = self.scenario.chunk_bytes;
        let host = &mut self.hosts[to];
        let awaited = host.asked.get(&request) == Some(&from) && host.alive;
        if !awaited || !host.held.insert(index) {
            self.counts.wasted += u64::from(bytes);
        } else {
            self.counts.useful += u64::from(bytes);
        }
        if awaited {
            self.tell(to, Event::Arrived { request, index, bytes });
            if last && self.hosts[to].asked.remove(&request).is_some() {
                self.tell(to, Event::Ended { request, end: RequestEnd::Done });
            }
        }
    }
}
