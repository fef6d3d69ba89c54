//! Orders nodes to get a disk from elsewhere. From then on it is an upload: its status, its end and
//! its abortion are those of `uploads`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use shoal_api::{ImportVersion, UploadStatus};
use shoal_content::ImageId;
use shoal_formats::Format;
use shoal_metadata::{Action, Import, UploadNote};

use super::caller::Caller;
use super::images::existing;
use super::input::{Body, Path};
use super::numbers;
use super::tags::check_new;
use super::uploads::{self, Order};
use crate::clock::now;
use crate::disks::LEASE;
use crate::http::problem::Problem;
use crate::remote;
use crate::state::App;

/// `POST …/versions/import`.
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Path(image): Path<ImageId>,
    Body(request): Body<ImportVersion>,
) -> Result<(StatusCode, Json<UploadStatus>), Problem> {
    existing(&caller, image, Action::Push)?;
    let owner = caller.account()?;
    numbers::check_names(&request.version, &request.tags)?;
    check_new(caller.view.query(), image, &request.version, &request.tags)?;
    drop(caller);
    let remote = app.services.disks.remote().ok_or(remote::Error::Disabled)?;
    let url = remote.check(&request.url)?;
    if request.checksum.is_none() && url.scheme() != "https" {
        let text = "what comes without TLS needs a checksum";
        return Err(Problem::bad_request("checksum_missing", text));
    }
    let format = request.format.as_deref().filter(|text| !text.is_empty());
    let format: Option<Format> = format.map(str::parse).transpose()?;
    // Only its head is read here.
    let opened = remote.open(&url, 0).await?;
    let (total_bytes, validator) = (opened.total_bytes, opened.validator);
    drop(opened.response);
    let import = Import {
        url: url.into(),
        validator,
        node: app.node,
        lease_until: now().plus_millis(LEASE.as_millis() as u64),
    };
    let note = UploadNote {
        changelog: request.changelog,
        build_info: uploads::build_info(request.build_info),
        layers: request.checksum.map(|sum| (sum, total_bytes)).into_iter().collect(),
        import: Some(import),
    };
    let order = Order {
        image,
        owner,
        number: request.version,
        tags: request.tags,
        total_bytes,
        wished_bytes: None,
        format,
    };
    let upload = uploads::begin(&app, order, note).await?;
    app.services.disks.start_import(upload.id);
    let status = uploads::status_of(&app, image, upload.id).await?;
    Ok((StatusCode::ACCEPTED, Json(status)))
}

impl From<remote::Error> for Problem {
    fn from(error: remote::Error) -> Self {
        use remote::Error;
        let text = error.to_string();
        match &error {
            Error::Disabled => Self::new(StatusCode::FORBIDDEN, "import_disabled", text),
            Error::Host(_) | Error::Address(_) => {
                Self::new(StatusCode::FORBIDDEN, "import_not_allowed", text)
            }
            Error::Broken(_) if !error.is_retryable() => {
                let text = "the host has no public address";
                Self::new(StatusCode::FORBIDDEN, "import_not_allowed", text)
            }
            Error::Url(_) => Self::bad_request("url_invalid", text),
            Error::TooLong { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "import_too_long", text)
            }
            Error::Redirect
            | Error::Status(_)
            | Error::Length
            | Error::Changed
            | Error::Broken(_) => Self::new(StatusCode::BAD_GATEWAY, "import_unreachable", text),
        }
    }
}
