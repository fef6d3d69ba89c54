//! Chooses what leaves the cache. Pure: it is told what there is and answers what goes.
//!
//! Invariant: what is in use or pinned is no candidate; the least recently used goes first; no
//! more goes than is needed.

use std::time::{Duration, SystemTime};

use shoal_content::RecipeId;

/// An entry that may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    pub recipe: RecipeId,
    pub used: SystemTime,
    /// What its removal frees, in bytes.
    pub bytes: u64,
}

/// The recipes to remove so that at least `wanted` bytes come free, oldest use first; all of them
/// where even that is too little. A use that lies ahead of `now` was before the clock was set, so before
/// all that was used since: it is not the latest for ever.
pub fn choose(mut candidates: Vec<Candidate>, wanted: u64, now: SystemTime) -> Vec<RecipeId> {
    candidates.sort_unstable_by_key(|candidate| {
        (candidate.used <= now, candidate.used, candidate.recipe)
    });
    let mut freed = 0u64;
    let mut chosen = Vec::new();
    for candidate in candidates {
        if freed >= wanted {
            break;
        }
        freed = freed.saturating_add(candidate.bytes);
        chosen.push(candidate.recipe);
    }
    chosen
}

/// The recipes that were not used for `age`, oldest use first. A use that lies ahead of `now` says
/// nothing: those stay.
pub fn idle(mut candidates: Vec<Candidate>, age: Duration, now: SystemTime) -> Vec<RecipeId> {
    candidates.retain(|one| now.duration_since(one.used).is_ok_and(|since| since >= age));
    candidates.sort_unstable_by_key(|candidate| (candidate.used, candidate.recipe));
    candidates.into_iter().map(|candidate| candidate.recipe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_used_for_so_long_goes_and_no_other() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let candidate = |name: &[u8], used: SystemTime| Candidate {
            recipe: RecipeId::of(name),
            used,
            bytes: 1,
        };
        let ago = |seconds| now - Duration::from_secs(seconds);
        let all = vec![
            candidate(b"new", ago(9)),
            candidate(b"old", ago(10)),
            candidate(b"oldest", ago(900)),
            candidate(b"ahead", now + Duration::from_secs(900)),
        ];
        let gone = idle(all, Duration::from_secs(10), now);
        assert_eq!(gone, [RecipeId::of(b"oldest"), RecipeId::of(b"old")]);
    }

    #[test]
    fn the_least_recently_used_goes_first_and_no_more_than_needed() {
        let candidate = |name: &[u8], age: u64, bytes| Candidate {
            recipe: RecipeId::of(name),
            used: SystemTime::UNIX_EPOCH + Duration::from_secs(1000 - age),
            bytes,
        };
        let all =
            vec![candidate(b"new", 1, 50), candidate(b"old", 9, 50), candidate(b"mid", 5, 50)];
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        assert_eq!(choose(all.clone(), 0, now), []);
        assert_eq!(choose(all.clone(), 50, now), [RecipeId::of(b"old")]);
        assert_eq!(choose(all.clone(), 51, now), [RecipeId::of(b"old"), RecipeId::of(b"mid")]);
        assert_eq!(choose(all.clone(), 1000, now).len(), 3);
        // The clock was set back: what was used before that goes before what was used since.
        let set_back = now - Duration::from_secs(7);
        let first = [RecipeId::of(b"mid"), RecipeId::of(b"new"), RecipeId::of(b"old")];
        assert_eq!(choose(all, 1000, set_back), first);
    }
}
