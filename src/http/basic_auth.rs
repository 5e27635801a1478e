//! Basic authentication against bcrypt hashes of passwords.
//!
//! A bcrypt check takes tens of milliseconds by design, and Prometheus sends its password with every request. So results
//! are cached, valid and invalid passwords apart: guesses cannot evict the passwords in use. Checks run one at a time, so
//! that guesses use at most one processor, and their queue is bounded, so that they do not occupy all connections.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bcrypt::{BcryptError, HashParts};
use hyper::header::HeaderValue;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;

/// Cached results of each kind. A full cache is cleared.
const CACHE_CAPACITY: usize = 100;
/// Limit of waiting checks: more than Prometheus has shards, which all begin with the same password.
const MAX_WAITING: usize = 64;
/// Accepted bcrypt costs. Above, one check would take a processor a minute.
const COSTS: std::ops::RangeInclusive<u32> = 4..=20;

/// An invalid hash.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is not a bcrypt hash.
    #[error("not a bcrypt hash, as htpasswd -nBC 10 \"\" makes it")]
    Hash(#[source] BcryptError),
    /// The cost is too high to check or too low to be safe.
    #[error("the cost of the hash is {0}: it has to be in {least} to {most}", least = COSTS.start(), most = COSTS.end())]
    Cost(u32),
}

/// The result of a password check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PasswordCheck {
    /// The password is the user's.
    Valid,
    /// The password is wrong or the user unknown.
    Invalid,
    /// Too many checks are waiting.
    Busy,
}

/// The users and the hashes of their passwords.
pub struct Users {
    hashes: BTreeMap<String, String>,
    cache: Mutex<PasswordCache>,
    /// Held during a check: one at a time, as it keeps a processor busy.
    comparing: Arc<Semaphore>,
    waiting: Semaphore,
}

impl Default for Users {
    fn default() -> Self {
        Self {
            hashes: BTreeMap::new(),
            cache: Mutex::default(),
            comparing: Arc::new(Semaphore::new(1)),
            waiting: Semaphore::new(MAX_WAITING),
        }
    }
}

/// Digests of names with passwords, by result.
#[derive(Default)]
struct PasswordCache {
    valid: HashSet<[u8; 32]>,
    invalid: HashSet<[u8; 32]>,
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.hashes.keys()).finish()
    }
}

impl Users {
    /// Adds a user.
    ///
    /// # Errors
    /// [`Error`] if the hash is invalid.
    pub fn add(&mut self, name: String, hash: String) -> Result<(), Error> {
        let cost = hash.parse::<HashParts>().map_err(Error::Hash)?.get_cost();
        if !COSTS.contains(&cost) {
            return Err(Error::Cost(cost));
        }
        self.hashes.insert(name, hash);
        Ok(())
    }

    /// The number of users.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// True if there are no users.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Checks the value of an `Authorization` header.
    pub async fn authenticate(&self, authorization: Option<&HeaderValue>) -> PasswordCheck {
        let Some((name, password)) = authorization.and_then(credentials) else {
            return PasswordCheck::Invalid;
        };
        let mut digest = Sha256::new();
        digest.update((name.len() as u64).to_le_bytes());
        digest.update(&name);
        digest.update(&password);
        let digest: [u8; 32] = digest.finalize().into();
        if let Some(check) = self.cached_check(&digest) {
            return check;
        }
        let Ok(_waiting) = self.waiting.try_acquire() else { return PasswordCheck::Busy };
        let permit = self.comparing.clone().acquire_owned().await.expect("the semaphore is never closed");
        // A request with the same password may have filled the cache meanwhile.
        if let Some(check) = self.cached_check(&digest) {
            return check;
        }
        let hash = self.hashes.get(&name);
        let user_exists = hash.is_some();
        // For an unknown user, the check takes as long as the slowest one, so that its time reveals no names.
        let slowest = self
            .hashes
            .values()
            .max_by_key(|hash| hash.parse::<HashParts>().map_or(0, |parts| parts.get_cost()));
        let Some(hash) = hash.or(slowest).cloned() else { return PasswordCheck::Invalid };
        // A dropped request does not end the check, which therefore owns the permit.
        let compare = move || (bcrypt::verify(password, &hash).unwrap_or(false), permit);
        let Ok((is_same, _permit)) = tokio::task::spawn_blocking(compare).await else {
            return PasswordCheck::Busy;
        };
        let check = if is_same && user_exists { PasswordCheck::Valid } else { PasswordCheck::Invalid };
        self.cache_check(digest, check);
        check
    }

    fn cached_check(&self, digest: &[u8; 32]) -> Option<PasswordCheck> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        match (cache.valid.contains(digest), cache.invalid.contains(digest)) {
            (true, _) => Some(PasswordCheck::Valid),
            (_, true) => Some(PasswordCheck::Invalid),
            _ => None,
        }
    }

    fn cache_check(&self, digest: [u8; 32], check: PasswordCheck) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let digests = if check == PasswordCheck::Valid { &mut cache.valid } else { &mut cache.invalid };
        if digests.len() >= CACHE_CAPACITY {
            digests.clear();
        }
        digests.insert(digest);
    }
}

/// Parses the name and the password of `Basic ...` (RFC 7617).
fn credentials(authorization: &HeaderValue) -> Option<(String, Vec<u8>)> {
    let (scheme, rest) = authorization.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = BASE64_STANDARD.decode(rest.trim()).ok()?;
    let colon = text.iter().position(|byte| *byte == b':')?;
    let name = String::from_utf8(text[..colon].to_vec()).ok()?;
    Some((name, text[colon + 1..].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users() -> Users {
        let mut users = Users::default();
        for name in ["ann", "bob"] {
            users.add(name.into(), bcrypt::hash(format!("{name}'s"), 4).expect("a hash")).expect("a hash");
        }
        users
    }

    fn basic(text: &str) -> HeaderValue {
        format!("Basic {}", BASE64_STANDARD.encode(text)).parse().expect("a header")
    }

    #[tokio::test]
    async fn only_users_with_their_own_password_are_admitted() {
        let users = users();
        for (text, is_valid) in [
            ("ann:ann's", true),
            ("bob:bob's", true),
            ("ann:bob's", false),
            ("ann:", false),
            ("ann:ann's:", false),
            (":ann's", false),
            ("eve:ann's", false),
            ("annann's", false),
        ] {
            for _ in 0..2 {
                assert_eq!(
                    users.authenticate(Some(&basic(text))).await == PasswordCheck::Valid,
                    is_valid,
                    "{text}"
                );
            }
        }
        assert_eq!(users.authenticate(None).await, PasswordCheck::Invalid);
        for header in ["", "Basic", "Basic ", "Basic !", "Bearer YW5uOmFubidz", "Basic\u{a0}x"] {
            let header = HeaderValue::from_str(header).unwrap_or(HeaderValue::from_static("x"));
            assert_eq!(users.authenticate(Some(&header)).await, PasswordCheck::Invalid, "{header:?}");
        }
        let lower: HeaderValue =
            format!("basic  {}", BASE64_STANDARD.encode("ann:ann's")).parse().expect("a header value");
        assert_eq!(
            users.authenticate(Some(&lower)).await,
            PasswordCheck::Valid,
            "the scheme's case does not matter"
        );
        assert_eq!(Users::default().authenticate(Some(&basic("ann:ann's"))).await, PasswordCheck::Invalid);
    }

    /// The cache is bounded, and invalid passwords do not evict valid ones.
    #[tokio::test]
    async fn valid_passwords_stay_cached_while_others_are_tried() {
        let users = users();
        assert_eq!(users.authenticate(Some(&basic("ann:ann's"))).await, PasswordCheck::Valid);
        for i in 0..2 * CACHE_CAPACITY {
            assert_eq!(users.authenticate(Some(&basic(&format!("ann:{i}")))).await, PasswordCheck::Invalid);
        }
        let cache = users.cache.lock().expect("no panic");
        assert_eq!(cache.valid.len(), 1);
        assert!(cache.invalid.len() <= CACHE_CAPACITY);
    }

    /// Checks above the limit are denied, also if their requests are dropped; cached passwords stay valid.
    #[tokio::test]
    async fn a_flood_of_wrong_passwords_uses_one_processor_and_is_bounded() {
        let users = Arc::new(users());
        assert_eq!(users.authenticate(Some(&basic("ann:ann's"))).await, PasswordCheck::Valid);
        let permit = users.comparing.clone().acquire_owned().await.expect("the semaphore is open");
        let flood = |i: usize| {
            let users = users.clone();
            tokio::spawn(async move { users.authenticate(Some(&basic(&format!("ann:{i}")))).await })
        };
        let flood: Vec<_> = (0..MAX_WAITING + 10).map(flood).collect();
        while users.waiting.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(users.authenticate(Some(&basic("bob:x"))).await, PasswordCheck::Busy);
        assert_eq!(users.authenticate(Some(&basic("ann:ann's"))).await, PasswordCheck::Valid);
        drop(permit);
        let mut checks = Vec::new();
        for task in flood {
            checks.push(task.await.expect("no panic"));
        }
        let count = |expected| checks.iter().filter(|check| **check == expected).count();
        assert_eq!((count(PasswordCheck::Invalid), count(PasswordCheck::Busy)), (MAX_WAITING, 10));

        let mut slow = Users::default();
        slow.add("ann".into(), bcrypt::hash("ann's", 10).expect("a hash")).expect("a hash");
        let slow = Arc::new(slow);
        let slow_users = slow.clone();
        let request = tokio::spawn(async move { slow_users.authenticate(Some(&basic("ann:x"))).await });
        while slow.comparing.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        request.abort();
        assert!(request.await.is_err_and(|ended| ended.is_cancelled()));
        assert_eq!(slow.comparing.available_permits(), 0, "the check continues");
        assert_eq!(slow.authenticate(Some(&basic("ann:ann's"))).await, PasswordCheck::Valid);
    }

    #[test]
    fn invalid_hashes_are_rejected() {
        let mut users = Users::default();
        for hash in ["", "secret", "$1$abc", "$2y$10$short"] {
            assert!(matches!(users.add("a".into(), hash.into()), Err(Error::Hash(_))), "{hash}");
        }
        for cost in ["00", "03", "21", "31"] {
            let hash = format!("$2y${cost}$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi");
            assert!(matches!(users.add("a".into(), hash), Err(Error::Cost(_))), "{cost}");
        }
        assert!(users.is_empty());
        assert!(!format!("{:?}", self::users()).contains('$'), "debug output hides hashes");
    }
}
