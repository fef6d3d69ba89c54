//! What is learnt about a request while it is answered: for its problems, and for the access log.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use shoal_content::{ImageId, Pin};

tokio::task_local! {
    static NOTED: Arc<Noted>;
}

/// Each fact is noted once; the first one stands.
#[derive(Debug, Default)]
pub struct Noted {
    /// The request's id.
    pub id: String,
    /// Where it comes from.
    pub client: Option<IpAddr>,
    pub user: OnceLock<String>,
    pub action: OnceLock<String>,
    pub image_id: OnceLock<ImageId>,
    pub image_name: OnceLock<String>,
    /// Which of the image's versions is asked for.
    pub pin: OnceLock<Pin>,
    /// Set where the answer's body is the content of an image.
    pub download: OnceLock<()>,
}

impl Noted {
    pub fn new(id: &str, client: Option<IpAddr>) -> Arc<Self> {
        Arc::new(Self { id: id.to_owned(), client, ..Self::default() })
    }

    /// `team/app:v1` or `team/app@sha256:…`, where one version of it is asked for; else its name.
    pub fn image(&self) -> String {
        let Some(name) = self.image_name.get() else { return String::new() };
        match self.pin.get() {
            Some(Pin::Tag(tag)) => format!("{name}:{tag}"),
            Some(Pin::Digest(digest)) => format!("{name}@{digest}"),
            None => name.clone(),
        }
    }
}

/// Does `work` for a request.
pub async fn within<T>(noted: Arc<Noted>, work: impl Future<Output = T>) -> T {
    NOTED.scope(noted, work).await
}

/// What is known of the request that is being answered, if one is.
pub fn current() -> Option<Arc<Noted>> {
    NOTED.try_with(Arc::clone).ok()
}

/// The id of the request that is being answered, if one is.
pub fn request_id() -> Option<String> {
    NOTED.try_with(|noted| noted.id.clone()).ok()
}

fn note<T>(field: fn(&Noted) -> &OnceLock<T>, value: impl FnOnce() -> T) {
    // Outside a request there is nothing to be noted for.
    let _ = NOTED.try_with(|noted| {
        field(noted).get_or_init(value);
    });
}

pub fn note_user(name: impl FnOnce() -> String) {
    note(|noted| &noted.user, name);
}

pub fn note_action(action: &str) {
    note(|noted| &noted.action, || action.to_owned());
}

pub fn note_download() {
    note(|noted| &noted.download, || ());
}

pub fn note_image_name(name: &str) {
    note(|noted| &noted.image_name, || name.to_owned());
}

pub fn note_image(id: ImageId, name: &str) {
    note(|noted| &noted.image_id, || id);
    note_image_name(name);
}

pub fn note_pin(pin: &Pin) {
    note(|noted| &noted.pin, || pin.clone());
}
