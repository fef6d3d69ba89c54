//! What the shells do with requests and content: slots, the ledger, chunks one after the other.

use std::time::Duration;

use shoal_content::RecipeId;
use shoal_swarm::frames::Frame;
use shoal_swarm::{Admission, Event, Member, RequestEnd, RequestId};

use super::{CHUNK_BYTES, LATENCY, Lan, NAMED, Number, Piece, What, contact, number};

impl Lan {
    pub(super) fn serve(
        &mut self,
        from: Number,
        host: Number,
        request: RequestId,
        mut indices: Vec<u32>,
        insists: bool,
    ) {
        let Some(asked) = self.hosts[from].asked.get(&request) else { return };
        if self.hosts[host].stalls {
            return;
        }
        let (recipe, now) = (asked.recipe, self.now);
        let end = |end| Event::Ended { request, end };
        let far = self.hosts[from].zone.room() != self.hosts[host].zone.room();
        let (client, found) = (contact(from).peer, &mut self.hosts[host]);
        let held = found.held.get(&recipe);
        if !found.node && !held.is_some_and(|held| indices.iter().all(|&i| held.contains(i))) {
            return self.message(host, from, end(RequestEnd::Absent));
        }
        if let Admission::Busy { name_others } =
            found.uploads.begin(now, client, far && !found.node)
        {
            if name_others {
                self.name_others(host, from, recipe);
            }
            return self.message(host, from, end(RequestEnd::Busy));
        }
        if found.node {
            let mut others = Vec::new();
            indices.retain(|&index| {
                let given = found.ledger.give(now, recipe, index, client, insists);
                given.map_err(|by| others.push((index, by))).is_ok()
            });
            for (index, by) in others {
                self.message(host, from, Event::Elsewhere { request, index, by });
            }
            if indices.is_empty() {
                self.hosts[host].uploads.end(client);
                self.message(host, from, end(RequestEnd::Done));
                return self.invite(host);
            }
        }
        let count = indices.len();
        let pieces = indices.into_iter().enumerate().map(|(at, index)| Piece {
            to: from,
            request,
            recipe,
            index,
            last: at + 1 == count,
        });
        self.hosts[host].queue.extend(pieces);
        self.send_next(host);
    }

    fn name_others(&mut self, host: Number, to: Number, recipe: RecipeId) {
        let served = self.hosts[host].uploads.served().map(number);
        let others: Vec<Number> = served.filter(|&other| other != to).take(NAMED).collect();
        let members: Vec<Member> = others.into_iter().map(|other| self.member(other)).collect();
        if !members.is_empty() {
            self.send(host, to, Frame::Peers { recipe, members });
        }
    }

    fn time_of_chunk(&self, host: Number) -> Duration {
        Duration::from_secs_f64(f64::from(CHUNK_BYTES) / self.hosts[host].line)
    }

    pub(super) fn send_next(&mut self, host: Number) {
        if self.hosts[host].on_line.is_none()
            && let Some(piece) = self.hosts[host].queue.pop_front()
        {
            let life = self.hosts[host].life;
            self.hosts[host].on_line = Some(piece);
            self.later(self.time_of_chunk(host), What::Sent { host, life });
        }
    }

    pub(super) fn sent(&mut self, host: Number) {
        let Some(piece) = self.hosts[host].on_line.take() else { return };
        let (now, client) = (self.now, contact(piece.to).peer);
        self.hosts[host].uploads.sent(now, u64::from(CHUNK_BYTES));
        let takes = self.time_of_chunk(piece.to);
        let taker = &mut self.hosts[piece.to];
        let there = (now + LATENCY).max(taker.line_in_free + takes);
        taker.line_in_free = there;
        self.later(there - now, What::Arrive { from: host, piece });
        if piece.last {
            self.hosts[host].uploads.end(client);
            self.invite(host);
        }
        self.send_next(host);
    }

    pub(super) fn arrive(&mut self, from: Number, piece: Piece) {
        let Piece { to, request, index, .. } = piece;
        if !self.reach(from, to) && self.hosts[from].alive {
            return;
        }
        let now = self.now;
        let host = &mut self.hosts[to];
        let Some(asked) = host.asked.get_mut(&request).filter(|asked| asked.of == from) else {
            return;
        };
        asked.open.retain(|&open| open != index);
        let Some(disk) = &mut host.disk else { return self.written(from, piece) };
        // Nothing is read of a request while a chunk of it is being written.
        if asked.is_writing {
            return asked.behind.push_back(piece);
        }
        asked.is_writing = true;
        let (wait, life) = (disk.takes(now) - now, host.life);
        self.tell(to, Event::Landed { request, index, bytes: CHUNK_BYTES });
        self.later(wait, What::Written { from, life, piece });
    }

    pub(super) fn written(&mut self, from: Number, piece: Piece) {
        let Piece { to, request, recipe, index, last } = piece;
        let from_node = u64::from(self.hosts[from].node);
        let host = &mut self.hosts[to];
        let Some(asked) = host.asked.get_mut(&request) else { return };
        asked.is_writing = false;
        let next = asked.behind.pop_front();
        host.from_nodes += from_node;
        if let Some(held) = host.held.get_mut(&recipe) {
            host.doubles += u64::from(!held.insert(index));
        }
        self.is_replaced(to, recipe, index);
        self.tell(to, Event::Arrived { request, index, bytes: CHUNK_BYTES });
        if last && self.hosts[to].asked.remove(&request).is_some() {
            self.tell(to, Event::Ended { request, end: RequestEnd::Done });
        }
        if let Some(next) = next {
            self.arrive(from, next);
        }
    }

    pub(super) fn cancelled(&mut self, host: Number, from: Number, request: RequestId) {
        let found = &mut self.hosts[host];
        let of_it = |piece: &Piece| piece.to == from && piece.request == request;
        let queued = found.queue.iter().any(of_it);
        for piece in found.queue.iter().filter(|piece| of_it(piece)) {
            found.ledger.take_back(piece.recipe, piece.index, contact(from).peer);
        }
        found.queue.retain(|piece| !of_it(piece));
        match &mut found.on_line {
            // What is on the line ends there.
            Some(piece) if of_it(piece) => piece.last = true,
            _ if queued => {
                found.uploads.end(contact(from).peer);
                self.invite(host);
            }
            _ => {}
        }
    }

    pub(super) fn invite(&mut self, host: Number) {
        while let Some(next) = self.hosts[host].uploads.invite(self.now) {
            let next = number(next);
            if self.hosts[host].links.contains_key(&next) {
                self.send(host, next, Frame::Free);
            } else {
                self.hosts[host].uploads.pass(contact(next).peer);
            }
        }
    }
}
