//! Upload sessions: POST, PATCH, PUT, GET and DELETE (distribution-spec, "Pushing Blobs").
//!
//! The session is a row of the metadata, so the next request may reach another node. A request's
//! bytes count once its command is through; until then the session stands where it stood. Requests
//! of one session take turns at a node; at two nodes, the first command wins.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, StatusCode, header};
use futures::StreamExt;
use shoal_content::{Algorithm, Digest, ObjectKey, RepositoryName, Timestamp, UploadId};
use shoal_metadata::{
    Action, Command, KeyOwner, Multipart, Refusal, Upload, UploadPurpose, What, command_version,
    holder, permission,
};
use shoal_raft::ProposeError;
use tracing::{Instrument, Span, warn};
use uuid::Uuid;

use super::access::covers;
use super::allowance::{Allowance, RESERVED_BYTES_MIN};
use super::intake::{BlobWriter, Form, IntakeError, Mismatch, Resumed, Turn};
use super::pieces;
use super::publication::{Publication, discard, new_image, publish};
use super::range::content_range;
use super::route::Route;
use super::{Answer, Asked, CHUNK_MIN_LENGTH, CONTENT_DIGEST, RegistryError, blob_location, empty};
use crate::http::noted;
use crate::http::pace::Pace;
use crate::http::problem::Problem;
use crate::state::App;
use crate::store::StoreError;

/// A session that nothing was heard of for so long has ended, in milliseconds.
pub const SESSION_TTL_MS: u64 = 24 * 3600 * 1000;
/// How long a request waits for an earlier one of its session to end.
const TURN_WAIT_MAX: Duration = Duration::from_secs(90);
/// What clients are told to send at least with each PATCH but the last: any length does.
const CHUNK_BYTES_MIN: &str = "1";

/// `POST /v2/NAME/blobs/uploads/`: a mount, a whole blob, or a new session.
pub async fn begin(asked: Asked, body: Body, repository: RepositoryName) -> Answer {
    if asked.method != Method::POST {
        return Err(RegistryError::unsupported());
    }
    let owner = asked.account()?;
    if let Some(mount) = asked.query.get("mount") {
        let from = asked.query.get("from").map(|name| name.parse()).transpose();
        // A source or a blob that cannot be one is one that is missing.
        if let (Ok(digest), Ok(from)) = (mount.parse::<Digest>(), from)
            && let Some(from) = source(&asked, &repository, from, &digest).await?
        {
            let to = repository.clone();
            let image = new_image();
            let mount = Command::MountBlob {
                from: Some(from),
                to,
                digest: digest.clone(),
                owner: owner.clone(),
                image,
            };
            match asked.app.propose(mount).await {
                Ok(_) => return created(&repository, &digest),
                Err(ProposeError::Refused(Refusal::NotFound(_))) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    let mut upload = Upload {
        id: UploadId::from_uuid(Uuid::now_v7()),
        owner,
        created_at: asked.app.now(),
        expires_at: expiry(&asked.app),
        purpose: UploadPurpose::Blob {
            repository: repository.clone(),
            offset: 0,
            checkpoint: None,
            multipart: None,
        },
    };
    let session = Session {
        upload: upload.id,
        repository,
        owner: upload.owner.clone(),
        offset: 0,
        checkpoint: None,
        multipart: None,
    };
    if asked.query.contains_key("digest") {
        // Whole in one request: there is no session to go on with.
        let turn = asked.app.intake.turn(session.upload).await;
        return to_the_end(session.close(asked, body, turn, false)).await;
    }
    // Which hash is to be computed as the bytes come (development branch of the specification).
    let algorithm = asked.query.get("digest-algorithm").map(|name| name.parse()).transpose();
    let algorithm = algorithm.map_err(RegistryError::digest_invalid)?.unwrap_or(Algorithm::Sha256);
    if algorithm != Algorithm::Sha256 {
        let turn = asked.app.intake.turn(session.upload).await;
        let mut writer = session.writer(&asked.app, turn, algorithm).await?;
        let saved = writer.checkpoint(session.upload, form(&asked.app)?).await?;
        if let UploadPurpose::Blob { checkpoint, .. } = &mut upload.purpose {
            *checkpoint = Some(saved.checkpoint);
        }
    }
    open(&asked.app, upload).await?;
    session.answer(StatusCode::ACCEPTED, 0)
}

/// Writes a new session down, if its account has not too many.
async fn open(app: &App, upload: Upload) -> Result<(), RegistryError> {
    let checkpoint = match &upload.purpose {
        UploadPurpose::Blob { checkpoint, .. } => *checkpoint,
        UploadPurpose::Disk { .. } => None,
    };
    let open_max = match app.config.registry.uploads_open_max_per_account {
        0 => u64::MAX,
        most => most,
    };
    let begin = match is_current(app)? {
        true => Command::BeginBlobUpload { upload, open_max },
        // Nodes of an earlier version know the shorter command only.
        false => Command::BeginUpload(upload),
    };
    match app.propose(begin).await {
        Ok(_) => Ok(()),
        Err(error) => {
            if let (Some(checkpoint), ProposeError::Refused(_)) = (checkpoint, &error) {
                discard(app, &[checkpoint]).await;
            }
            Err(error.into())
        }
    }
}

/// Whether every node knows what came with this version.
fn is_current(app: &App) -> Result<bool, RegistryError> {
    Ok(app.raft.local().query().level()? >= command_version(&Command::IndexBlobs))
}

/// In which form all nodes can read a checkpoint.
fn form(app: &App) -> Result<Form, RegistryError> {
    Ok(if is_current(app)? { Form::Pieces } else { Form::Whole })
}

/// Goes on with `work` where the client is gone, too: what has come is to be kept, and what is
/// named must not be given up halfway.
async fn to_the_end(work: impl Future<Output = Answer> + Send + 'static) -> Answer {
    let work = work.instrument(Span::current());
    let task = match noted::current() {
        Some(noted) => tokio::spawn(noted::within(noted, work)),
        None => tokio::spawn(work),
    };
    task.await.unwrap_or_else(|error| Err(Problem::internal(&error).into()))
}

/// `/v2/NAME/blobs/uploads/ID`.
pub async fn handle(asked: Asked, body: Body, repository: RepositoryName, upload: &str) -> Answer {
    let id = Uuid::try_parse(upload).map_err(|_| RegistryError::upload_unknown())?;
    let id = UploadId::from_uuid(id);
    if matches!(asked.method, Method::GET | Method::HEAD) {
        let session = Session::load(&asked, repository, id).await?;
        return session.answer(StatusCode::NO_CONTENT, session.offset);
    }
    let turn = tokio::select! {
        turn = tokio::time::timeout(TURN_WAIT_MAX, asked.app.intake.turn(id)) => turn,
        () = asked.app.drain.cut() => return Err(stopping()),
    };
    let turn = turn.map_err(|_| {
        let message = "another request of this upload session is still under way";
        RegistryError::new(StatusCode::CONFLICT, "BLOB_UPLOAD_INVALID", message)
    })?;
    let session = Session::load(&asked, repository, id).await?;
    match asked.method {
        Method::PATCH => to_the_end(session.append(asked, body, turn)).await,
        Method::PUT => to_the_end(session.close(asked, body, turn, true)).await,
        Method::DELETE => to_the_end(session.cancel(asked, turn)).await,
        _ => Err(RegistryError::unsupported()),
    }
}

/// The repository that a request names to mount a blob from.
pub fn mounted_from(
    route: &Route<'_>,
    method: &Method,
    pairs: &[(String, String)],
) -> Option<RepositoryName> {
    let begins = matches!(route, Route::Uploads(_)) && *method == Method::POST;
    let value = |name: &str| pairs.iter().rfind(|(key, _)| key == name).map(|(_, value)| value);
    value("mount").filter(|_| begins)?;
    value("from")?.parse().ok()
}

/// The repository that is named, if the asker may pull from it; else one that holds the blob and
/// that the asker may pull from. A blob that lies elsewhere is not to be had by its digest.
async fn source(
    asked: &Asked,
    to: &RepositoryName,
    from: Option<RepositoryName>,
    digest: &Digest,
) -> Result<Option<RepositoryName>, RegistryError> {
    let view = asked.app.view().await?;
    let (query, who) = (view.query(), asked.who());
    // Where none is named, its owner's rights decide: a client cannot ask for the scope of a
    // repository that it does not know.
    let Some(from) = from else {
        return Ok(holder(query, &who, digest, &to.project())?);
    };
    if asked.granted.as_ref().is_some_and(|granted| !covers(granted, &from, Action::Pull)) {
        return Ok(None);
    }
    let pulls = permission(query, &who, Action::Pull, What::Repository(&from))?;
    Ok(pulls.is_allowed().then_some(from))
}

/// How long the body is, where that is said.
fn announced(asked: &Asked) -> Option<u64> {
    asked.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

struct Session {
    upload: UploadId,
    repository: RepositoryName,
    owner: String,
    offset: u64,
    checkpoint: Option<ObjectKey>,
    multipart: Option<Multipart>,
}

impl Session {
    async fn load(
        asked: &Asked,
        repository: RepositoryName,
        id: UploadId,
    ) -> Result<Self, RegistryError> {
        let row = asked.app.view().await?.query().upload(id)?;
        let Some(Upload {
            owner,
            expires_at,
            purpose: UploadPurpose::Blob { repository: of, offset, checkpoint, multipart },
            ..
        }) = row
        else {
            return Err(RegistryError::upload_unknown());
        };
        // Whoever else may push there has sessions of its own.
        if of != repository || expires_at <= asked.app.now() || owner != asked.account()? {
            return Err(RegistryError::upload_unknown());
        }
        Ok(Self { upload: id, repository, owner, offset, checkpoint, multipart })
    }

    /// Where the client goes on, and how far it is. `Range` has no unit here, and is `0-0` both
    /// for no byte and for one (distribution-spec).
    fn answer(&self, status: StatusCode, offset: u64) -> Answer {
        let id = self.upload.as_uuid().simple();
        let location = format!("/v2/{}/blobs/uploads/{id}", self.repository);
        empty(
            status,
            &[
                (header::LOCATION, location),
                (header::RANGE, format!("0-{}", offset.saturating_sub(1))),
                (header::HeaderName::from_static("docker-upload-uuid"), id.to_string()),
                (CHUNK_MIN_LENGTH, CHUNK_BYTES_MIN.to_owned()),
            ],
        )
    }

    fn out_of_order(&self) -> RegistryError {
        self.stands_at(self.offset)
    }

    fn stands_at(&self, offset: u64) -> RegistryError {
        let message = format!("the upload stands at byte {offset}");
        let range = format!("0-{}", offset.saturating_sub(1));
        let location =
            format!("/v2/{}/blobs/uploads/{}", self.repository, self.upload.as_uuid().simple());
        RegistryError::new(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID", message)
            .with(header::RANGE, &range)
            .with(header::LOCATION, &location)
    }

    /// `Content-Range: FIRST-LAST`, without a unit, must go on where the session stands and agree
    /// with the length, where one is announced. Gives the length that it says.
    fn check_order(&self, asked: &Asked) -> Result<Option<u64>, RegistryError> {
        let Some(value) = asked.headers.get(header::CONTENT_RANGE) else { return Ok(None) };
        let range = content_range(value.to_str().unwrap_or_default());
        let (first, last) = range.ok_or_else(|| self.out_of_order())?;
        let length = last.checked_sub(first).and_then(|bytes| bytes.checked_add(1));
        let length = length.ok_or_else(|| self.out_of_order())?;
        let fits = announced(asked).is_none_or(|announced| announced == length);
        if first == self.offset && fits { Ok(Some(length)) } else { Err(self.out_of_order()) }
    }

    /// A blob that is too long for any repository is refused before its bytes come.
    fn check_length(&self, asked: &Asked) -> Result<(), RegistryError> {
        let total = self.offset.saturating_add(announced(asked).unwrap_or(0));
        Ok(asked.app.intake.check_length(total)?)
    }

    /// What may come, as far as can be said before it does. A length that was announced is
    /// refused, or reserved where there is a session and a limit to reserve from.
    async fn allowance(&self, asked: &Asked, registered: bool) -> Result<Allowance, RegistryError> {
        let app = &asked.app;
        let allowance = Allowance::new(app, self.repository.project(), self.upload, &self.owner)?;
        let length = announced(asked);
        let total = self.offset.saturating_add(length.unwrap_or(0));
        allowance.check(app, total).await?;
        if registered && allowance.is_limited() && length >= Some(RESERVED_BYTES_MIN) {
            let reserve = Command::ReserveUpload { upload: self.upload, bytes: total };
            app.propose(reserve).await?;
        }
        Ok(allowance)
    }

    async fn writer(
        &self,
        app: &App,
        turn: Turn,
        algorithm: Algorithm,
    ) -> Result<BlobWriter, RegistryError> {
        let store = std::sync::Arc::clone(&app.store);
        let under = KeyOwner::Project(self.repository.project());
        let Some(checkpoint) = self.checkpoint else {
            return Ok(BlobWriter::begin(&app.intake, store, under, turn, algorithm));
        };
        let (multipart, offset) = (self.multipart.clone(), self.offset);
        let at = Resumed { checkpoint, multipart, offset };
        tokio::select! {
            resumed = BlobWriter::resume(&app.intake, store, under, turn, at) => match resumed {
                Err(error) => Err(self.failed(app, error).await),
                Ok(resumed) => Ok(resumed),
            },
            () = app.drain.cut() => Err(stopping()),
        }
    }

    /// What is answered where what the session had in storage is not there, or not as it was.
    async fn failed(&self, app: &App, error: IntakeError) -> RegistryError {
        match error {
            IntakeError::Checkpoint | IntakeError::Store(StoreError::NotFound(_)) => {
                let overtaken = self.overtaken(app).await;
                overtaken.unwrap_or_else(Some).unwrap_or_else(|| error.into())
            }
            error => error.into(),
        }
    }

    /// What is answered where another request of the session went through at another node since the row
    /// was read: what this one was to go on from is gone then.
    async fn overtaken(&self, app: &App) -> Result<Option<RegistryError>, RegistryError> {
        let row = app.view().await?.query().upload(self.upload)?;
        Ok(match row.map(|row| row.purpose) {
            Some(UploadPurpose::Blob { checkpoint, .. }) if checkpoint == self.checkpoint => None,
            Some(UploadPurpose::Blob { offset, .. }) => Some(self.stands_at(offset)),
            _ => Some(RegistryError::upload_unknown()),
        })
    }

    async fn append(self, asked: Asked, body: Body, turn: Turn) -> Answer {
        let length = self.check_order(&asked)?;
        self.check_length(&asked)?;
        let allowance = self.allowance(&asked, true).await?;
        // The client may say at the end only which digest it has; nearly always it is this one.
        let mut writer = self.writer(&asked.app, turn, Algorithm::Sha256).await?;
        let taken = take(&asked.app, &mut writer, body, length, &allowance).await;
        let whole = match taken {
            // Nobody could go on from here: the session stays where it stood.
            Err(error) if writer.is_torn() => return Err(error),
            // Nor does anybody know what this was a part of.
            Ok(Taken::OtherLength) => return Err(self.out_of_order()),
            taken => taken,
        };
        let offset = writer.offset();
        // What did come before a connection broke is kept, so that the client need not resend it.
        let saved = match writer.checkpoint(self.upload, form(&asked.app)?).await {
            Ok(saved) => saved,
            Err(error) => return Err(self.failed(&asked.app, error).await),
        };
        let advance = Command::AdvanceUpload {
            upload: self.upload,
            from: self.offset,
            to: offset,
            checkpoint: Some(saved.checkpoint),
            multipart: saved.multipart,
            expires_at: expiry(&asked.app),
        };
        match asked.app.propose(advance).await {
            Ok(_) => writer.named(),
            Err(ProposeError::Refused(refusal)) => {
                discard(&asked.app, &[saved.checkpoint]).await;
                return Err(match refusal {
                    Refusal::OffsetMismatch(at) => self.stands_at(at),
                    refusal => ProposeError::Refused(refusal).into(),
                });
            }
            Err(error) => {
                // The command may have gone through: what it names stays.
                writer.named();
                return Err(error.into());
            }
        }
        discard(&asked.app, &saved.superseded).await;
        whole?;
        self.answer(StatusCode::ACCEPTED, offset)
    }

    /// `registered` is whether the session has a row.
    async fn close(self, asked: Asked, body: Body, turn: Turn, registered: bool) -> Answer {
        let digest = asked.query.get("digest");
        let digest = digest
            .ok_or_else(|| RegistryError::digest_invalid("the digest parameter is missing"))?;
        let digest: Digest = digest.parse().map_err(RegistryError::digest_invalid)?;
        let length = self.check_order(&asked)?;
        self.check_length(&asked)?;
        let project = self.repository.project();
        let held = asked.app.raft.local().query().project_holds(&project, &digest)?;
        let allowance = match held {
            // It costs nothing more.
            true => Allowance::unlimited(project),
            false => self.allowance(&asked, registered).await?,
        };
        let app = asked.app.clone();
        // Until the command is answered nobody else closes the session here.
        let _turn = Turn::clone(&turn);
        let mut writer = self.writer(&app, turn, digest.algorithm()).await?;
        match take(&app, &mut writer, body, length, &allowance).await {
            Ok(Taken::Whole) => {}
            Ok(Taken::OtherLength) => return Err(self.out_of_order()),
            Err(error) if registered => {
                let overtaken = self.overtaken(&app).await.ok().flatten();
                return Err(overtaken.unwrap_or(error));
            }
            Err(error) => return Err(error),
        }
        let found = writer.found().to_vec();
        let written = match writer.finish(&digest).await {
            Ok(Ok(written)) => written,
            Ok(Err(Mismatch { is, ended })) => {
                if ended && registered {
                    app.propose(Command::AbortUpload { upload: self.upload }).await?;
                    discard(&app, &found).await;
                }
                let message = format!("the content's digest is {is}, not {digest}");
                return Err(RegistryError::digest_invalid(message));
            }
            Err(error) if registered => return Err(self.failed(&app, error).await),
            Err(error) => return Err(error.into()),
        };
        let publication = Publication {
            upload: registered.then_some(self.upload),
            repository: self.repository.clone(),
            digest: digest.clone(),
            owner: self.owner.clone(),
            own: self.multipart.is_none(),
        };
        publish(&app, written, publication).await?;
        discard(&app, &found).await;
        created(&self.repository, &digest)
    }

    /// The session is gone with its row; what cannot be dropped then is found by the scrub.
    async fn cancel(self, asked: Asked, _turn: Turn) -> Answer {
        asked.app.propose(Command::AbortUpload { upload: self.upload }).await?;
        if let Some(multipart) = &self.multipart
            && let Err(error) = asked.app.store.abort(multipart.object, &multipart.id).await
        {
            warn!(upload = %self.upload, %error, "a cancelled upload's parts stay in storage");
        }
        let deleted = pieces::delete_all(&*asked.app.store, self.upload, self.checkpoint).await;
        if let Err(error) = deleted {
            warn!(upload = %self.upload, %error, "a cancelled upload's checkpoints stay in storage");
        }
        empty(StatusCode::NO_CONTENT, &[])
    }
}

/// How a body ended that did not break off.
enum Taken {
    Whole,
    /// It had more bytes than it was said to have, which were not looked at, or fewer.
    OtherLength,
}

/// Hands the body to the writer, as it comes. A body that comes too slowly is cut off, the sooner
/// where other uploads wait for the memory that it holds. What came is kept, and the client may go
/// on from there. Where `length` is given, the body is to have as many bytes.
async fn take(
    app: &App,
    writer: &mut BlobWriter,
    body: Body,
    length: Option<u64>,
    allowance: &Allowance,
) -> Result<Taken, RegistryError> {
    let (mut pieces, mut came) = (body.into_data_stream(), 0);
    let mut pace = Pace::begin();
    loop {
        let piece = tokio::select! {
            piece = pace.within(pieces.next()) => piece.map_err(|_| too_slow())?,
            () = writer.is_wanted() => return Err(gives_way()),
            () = app.drain.cut() => return Err(stopping()),
        };
        let Some(piece) = piece else {
            let fits = length.is_none_or(|length| length == came);
            return Ok(if fits { Taken::Whole } else { Taken::OtherLength });
        };
        let piece = piece.map_err(|error| {
            let message = format!("the connection broke while the body came: {error}");
            RegistryError::new(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", message)
        })?;
        pace.count(piece.len());
        came += piece.len() as u64;
        if length.is_some_and(|length| came > length) {
            return Ok(Taken::OtherLength);
        }
        app.metrics.upload_bytes.inc_by(piece.len() as u64);
        allowance.check(app, writer.offset() + piece.len() as u64).await?;
        writer.write(piece).await?;
    }
}

fn stopping() -> RegistryError {
    let message = "the node is stopping; go on from where the session stands, at any node";
    RegistryError::new(StatusCode::SERVICE_UNAVAILABLE, "BLOB_UPLOAD_INVALID", message)
        .with(header::RETRY_AFTER, "1")
}

fn gives_way() -> RegistryError {
    let message = "the body comes slowly while others wait for its room; go on later from where \
                   the session stands, or at another node";
    RegistryError::crowded(message)
}

fn too_slow() -> RegistryError {
    let message = "the body comes too slowly; go on from where the session stands";
    RegistryError::new(StatusCode::REQUEST_TIMEOUT, "BLOB_UPLOAD_INVALID", message)
}

fn created(repository: &RepositoryName, digest: &Digest) -> Answer {
    let location = blob_location(repository, digest);
    empty(
        StatusCode::CREATED,
        &[(header::LOCATION, location), (CONTENT_DIGEST, digest.to_string())],
    )
}

fn expiry(app: &App) -> Timestamp {
    app.now().plus_millis(SESSION_TTL_MS)
}
