//! Objects in a bucket of an S3 service; made for, and tested on, Ceph's gateway.
//!
//! Quirks that are dealt with: path-style addresses; checksums only where the protocol demands
//! them; an empty ETag in the answer to CompleteMultipartUpload.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use aws_credential_types::Credentials;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Builder, Region, RequestChecksumCalculation, ResponseChecksumValidation,
};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::{ByteStream as SdkStream, DateTime};
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart, Delete, ObjectIdentifier};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use shoal_content::{ObjectKey, Timestamp};
use shoal_metadata::KeyOwner;
use tokio_util::io::ReaderStream;
use tracing::instrument;
use zeroize::Zeroizing;

use crate::clock;

use super::bucket_usage::bucket_usage;
use super::{
    BlobStore, ByteStream, Completion, OWNER_BYTES_MAX, OWNER_NAME, StoreError, StoredObject,
    StoredPart, Usage,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// From the request to the first byte of its answer; that answer's body may take longer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// What is sent may come through so slowly, in bytes a second.
const SENT_PER_SECOND_MIN: u64 = 512 * 1024;
const ATTEMPTS_MAX: u32 = 4;
/// S3's own limit for one DeleteObjects.
const DELETE_KEYS_MAX: usize = 1000;
/// S3's own limit for one page of a listing.
const LIST_KEYS_MAX: usize = 1000;
const PIECE_BYTES: usize = 256 * 1024;

/// Where the bucket is and how to get in.
#[derive(Clone)]
pub struct S3Settings {
    pub endpoint: String,
    /// Where clients that are redirected reach it, if not at `endpoint`.
    pub redirect_endpoint: Option<String>,
    pub region: String,
    pub bucket: String,
    pub access_key: String,
    pub secret_key: Zeroizing<String>,
    pub path_style: bool,
}

impl std::fmt::Debug for S3Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Settings")
            .field("endpoint", &self.endpoint)
            .field("bucket", &self.bucket)
            .finish_non_exhaustive()
    }
}

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct S3Store {
    client: Client,
    /// Signs addresses, and is never connected.
    signer: Client,
    bucket: String,
}

impl S3Store {
    /// Connects, and makes the bucket where it is missing.
    ///
    /// # Errors
    /// Where the service does not answer or does not let these keys in.
    pub async fn open(settings: &S3Settings) -> Result<Self, StoreError> {
        let credentials = Credentials::new(
            &settings.access_key,
            settings.secret_key.as_str(),
            None,
            None,
            "shoal configuration",
        );
        let redirect_endpoint = settings.redirect_endpoint.as_ref();
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .endpoint_url(&settings.endpoint)
            .region(Region::new(settings.region.clone()))
            .credentials_provider(credentials)
            .force_path_style(settings.path_style)
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS_MAX))
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(CONNECT_TIMEOUT)
                    .read_timeout(READ_TIMEOUT)
                    .build(),
            )
            .build();
        let signing = config.to_builder();
        let signing = signing.endpoint_url(redirect_endpoint.unwrap_or(&settings.endpoint)).build();
        let store = Self {
            client: Client::from_conf(config),
            signer: Client::from_conf(signing),
            bucket: settings.bucket.clone(),
        };
        store.ensure_bucket().await?;
        Ok(store)
    }

    async fn ensure_bucket(&self) -> Result<(), StoreError> {
        let head = self.client.head_bucket().bucket(&self.bucket).send().await;
        let Err(error) = head else { return Ok(()) };
        if status(&error) != Some(404) {
            return Err(refusal("opening the bucket", &error));
        }
        let created = self.client.create_bucket().bucket(&self.bucket).send().await;
        match created {
            // Another node was quicker.
            Err(error) if status(&error) != Some(409) => Err(refusal("making the bucket", &error)),
            _ => Ok(()),
        }
    }

    /// Whose bucket it is, and the tag of the object that says so.
    async fn read_owner(&self) -> Result<Option<(Bytes, Option<String>)>, StoreError> {
        let doing = "reading whose bucket it is";
        let request = self.client.get_object().bucket(&self.bucket).key(OWNER_NAME);
        let object = match request.send().await {
            Err(error) if status(&error) == Some(404) => return Ok(None),
            sent => sent.map_err(|error| refusal(doing, &error))?,
        };
        let length = object.content_length.and_then(|length| u64::try_from(length).ok());
        if length.is_none_or(|length| length > OWNER_BYTES_MAX) {
            return Ok(Some((Bytes::new(), object.e_tag)));
        }
        let tag = object.e_tag.clone();
        let cut_off = |cause: String| StoreError::Unavailable { doing, cause };
        let owner = object.body.collect().await.map_err(|error| cut_off(error.to_string()))?;
        Ok(Some((owner.into_bytes(), tag)))
    }
}

/// For a request that sends so many bytes, each time that it is tried: the answer begins when they
/// are all there. The SDK keeps connections for each timeout of reading, so that there is none.
fn sending(bytes: usize) -> Builder {
    let seconds = (bytes as u64).div_ceil(SENT_PER_SECOND_MIN);
    let most = READ_TIMEOUT + Duration::from_secs(seconds);
    let timeouts = TimeoutConfig::builder().disable_read_timeout().operation_attempt_timeout(most);
    Builder::new().timeout_config(timeouts.build())
}

/// A time that is missing is now: nothing is old that does not say so.
fn timestamp(time: Option<&DateTime>) -> Timestamp {
    let millis = time.and_then(|time| time.to_millis().ok()?.try_into().ok());
    millis.map_or_else(clock::now, Timestamp::from_millis)
}

fn status<E, R>(error: &SdkError<E, R>) -> Option<u16>
where
    R: HasStatus,
{
    match error {
        SdkError::ServiceError(error) => Some(error.raw().status_code()),
        SdkError::ResponseError(error) => Some(error.raw().status_code()),
        _ => None,
    }
}

/// The SDK is generic over its raw response; only the status matters here.
trait HasStatus {
    fn status_code(&self) -> u16;
}

impl HasStatus for aws_sdk_s3::config::http::HttpResponse {
    fn status_code(&self) -> u16 {
        self.status().as_u16()
    }
}

fn refusal<E>(
    doing: &'static str,
    error: &SdkError<E, aws_sdk_s3::config::http::HttpResponse>,
) -> StoreError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let code = error.code().unwrap_or_default();
    let cause = match (code, error.message()) {
        ("", None) => chain(error),
        (code, message) => format!("{code} {}", message.unwrap_or_default()).trim().to_owned(),
    };
    match (status(error), code) {
        (Some(507), _) | (_, "QuotaExceeded" | "EntityTooLarge") => {
            StoreError::Full(format!("no space left in object storage: {cause}"))
        }
        (_, "NoSuchUpload" | "InvalidPart" | "InvalidPartOrder") => StoreError::Multipart,
        (Some(429 | 500..=599) | None, _) => StoreError::Unavailable { doing, cause },
        _ => StoreError::Refused { doing, cause },
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

#[async_trait]
impl BlobStore for S3Store {
    #[instrument(name = "storage.put", level = "debug", skip_all, fields(otel.kind = "client"))]
    async fn put(&self, key: ObjectKey, _: &KeyOwner, bytes: Bytes) -> Result<(), StoreError> {
        let request = self.client.put_object().bucket(&self.bucket).key(key.to_string());
        let timeouts = sending(bytes.len());
        let request = request.body(SdkStream::from(bytes)).customize().config_override(timeouts);
        request.send().await.map(drop).map_err(|error| refusal("putting an object", &error))
    }

    #[instrument(name = "storage.begin", level = "debug", skip_all, fields(otel.kind = "client"))]
    async fn begin(&self, key: ObjectKey, _: &KeyOwner) -> Result<String, StoreError> {
        let request = self.client.create_multipart_upload().bucket(&self.bucket);
        let sent = request.key(key.to_string()).send().await;
        let begun = sent.map_err(|error| refusal("beginning a multipart upload", &error))?;
        begun.upload_id.ok_or(StoreError::Multipart)
    }

    #[instrument(name = "storage.put_part", level = "debug", skip_all, fields(otel.kind = "client"))]
    async fn put_part(
        &self,
        key: ObjectKey,
        multipart: &str,
        number: u32,
        _: u64,
        bytes: Bytes,
    ) -> Result<StoredPart, StoreError> {
        let (length, timeouts) = (bytes.len() as u64, sending(bytes.len()));
        let request = self.client.upload_part().bucket(&self.bucket).key(key.to_string());
        let request = request.upload_id(multipart).part_number(number.cast_signed());
        let request = request.body(SdkStream::from(bytes)).customize().config_override(timeouts);
        let stored = request.send().await.map_err(|error| refusal("putting a part", &error))?;
        let tag = stored.e_tag.ok_or(StoreError::Multipart)?;
        Ok(StoredPart { number, tag, length })
    }

    #[instrument(name = "storage.complete", level = "debug", skip_all, fields(otel.kind = "client"))]
    async fn complete(
        &self,
        key: ObjectKey,
        multipart: &str,
        parts: &[StoredPart],
    ) -> Result<Completion, StoreError> {
        let parts = parts.iter().map(|part| {
            let part_number = part.number.cast_signed();
            CompletedPart::builder().part_number(part_number).e_tag(&part.tag).build()
        });
        let whole = CompletedMultipartUpload::builder().set_parts(Some(parts.collect())).build();
        let request = self.client.complete_multipart_upload().bucket(&self.bucket);
        let request = request.key(key.to_string()).upload_id(multipart);
        match request.multipart_upload(whole).send().await {
            Ok(_) => Ok(Completion::Now),
            Err(error) => match refusal("completing a multipart upload", &error) {
                StoreError::Multipart if self.length(key).await?.is_some() => {
                    Ok(Completion::Before)
                }
                refusal => Err(refusal),
            },
        }
    }

    async fn abort(&self, key: ObjectKey, multipart: &str) -> Result<(), StoreError> {
        let request = self.client.abort_multipart_upload().bucket(&self.bucket);
        let sent = request.key(key.to_string()).upload_id(multipart).send().await;
        match sent.map_err(|error| refusal("aborting a multipart upload", &error)) {
            Err(StoreError::Multipart) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    #[instrument(name = "storage.get", level = "debug", skip_all, fields(otel.kind = "client"))]
    async fn get(&self, key: ObjectKey, range: Range<u64>) -> Result<ByteStream, StoreError> {
        if range.start >= range.end {
            // HTTP has no empty range; the object must be there all the same.
            return match self.length(key).await? {
                Some(length) if range.start <= length && range.start == range.end => {
                    Ok(futures::stream::empty().boxed())
                }
                Some(_) => Err(StoreError::Range { key, start: range.start, end: range.end }),
                None => Err(StoreError::NotFound(key)),
            };
        }
        let request = self.client.get_object().bucket(&self.bucket).key(key.to_string());
        let request = request.range(format!("bytes={}-{}", range.start, range.end - 1));
        let object = request.send().await.map_err(|error| match status(&error) {
            Some(404) => StoreError::NotFound(key),
            Some(416) => StoreError::Range { key, start: range.start, end: range.end },
            _ => refusal("getting an object", &error),
        })?;
        // S3 clamps a range that passes the end.
        let expected = i64::try_from(range.end - range.start).ok();
        if object.content_length != expected {
            return Err(StoreError::Range { key, start: range.start, end: range.end });
        }
        let reader = object.body.into_async_read();
        let failed = |error: std::io::Error| StoreError::Unavailable {
            doing: "reading an object",
            cause: error.to_string(),
        };
        Ok(ReaderStream::with_capacity(reader, PIECE_BYTES).map_err(failed).boxed())
    }

    #[instrument(name = "storage.length", level = "debug", skip_all, fields(otel.kind = "client"))]
    async fn length(&self, key: ObjectKey) -> Result<Option<u64>, StoreError> {
        let request = self.client.head_object().bucket(&self.bucket).key(key.to_string());
        match request.send().await {
            Ok(head) => Ok(Some(head.content_length.unwrap_or_default().unsigned_abs())),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(refusal("looking an object up", &error)),
        }
    }

    async fn lasts(&self, key: ObjectKey) -> Result<bool, StoreError> {
        Ok(self.length(key).await?.is_some())
    }

    async fn forget(&self, _: ObjectKey) {}

    #[instrument(name = "storage.delete", level = "debug", skip_all, fields(otel.kind = "client"))]
    async fn delete(&self, keys: &[ObjectKey]) -> Result<(), StoreError> {
        for batch in keys.chunks(DELETE_KEYS_MAX) {
            let objects =
                batch.iter().map(|key| ObjectIdentifier::builder().key(key.to_string()).build());
            let objects: Result<Vec<_>, _> = objects.collect();
            let doing = "deleting objects";
            let malformed = |error: aws_sdk_s3::error::BuildError| StoreError::Refused {
                doing,
                cause: error.to_string(),
            };
            let delete = Delete::builder()
                .set_objects(Some(objects.map_err(malformed)?))
                .quiet(true)
                .build()
                .map_err(malformed)?;
            let request = self.client.delete_objects().bucket(&self.bucket).delete(delete);
            let answer = request.send().await.map_err(|error| refusal(doing, &error))?;
            if let Some(error) = answer.errors().first() {
                let cause = error.message().or(error.code()).unwrap_or("no reason").to_owned();
                return Err(StoreError::Unavailable { doing, cause });
            }
        }
        Ok(())
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<ObjectKey>,
        limit: usize,
    ) -> Result<Vec<StoredObject>, StoreError> {
        let mut found = Vec::new();
        let mut after = after.map(|key| key.to_string());
        while found.len() < limit {
            let keys = (limit - found.len()).min(LIST_KEYS_MAX) as i32;
            let request = self.client.list_objects_v2().bucket(&self.bucket).prefix(prefix);
            let request = request.set_start_after(after.clone()).max_keys(keys);
            let page = request.send().await.map_err(|error| refusal("listing objects", &error))?;
            for object in page.contents() {
                let text = object.key().unwrap_or_default();
                after = Some(text.to_owned());
                // What is not ours is not looked at.
                if let Ok(key) = text.parse() {
                    let length = object.size().unwrap_or_default().unsigned_abs();
                    let stored_at = timestamp(object.last_modified());
                    found.push(StoredObject { key, length, stored_at });
                }
            }
            if page.is_truncated() != Some(true) {
                break;
            }
        }
        Ok(found)
    }

    async fn abort_stale(
        &self,
        begun_before: Timestamp,
        named: &BTreeSet<String>,
    ) -> Result<u64, StoreError> {
        let mut dropped = 0;
        let (mut key_marker, mut id_marker) = (None, None);
        loop {
            let request = self.client.list_multipart_uploads().bucket(&self.bucket);
            let request = request.set_key_marker(key_marker).set_upload_id_marker(id_marker);
            let page = request.send().await;
            let page = page.map_err(|error| refusal("listing multipart uploads", &error))?;
            for upload in page.uploads() {
                let (Some(key), Some(id)) = (upload.key(), upload.upload_id()) else { continue };
                // What is not ours is not touched.
                let Ok(key) = key.parse::<ObjectKey>() else { continue };
                if timestamp(upload.initiated()) < begun_before && !named.contains(id) {
                    self.abort(key, id).await?;
                    dropped += 1;
                }
            }
            if page.is_truncated() != Some(true) {
                return Ok(dropped);
            }
            key_marker = page.next_key_marker().map(str::to_owned);
            id_marker = page.next_upload_id_marker().map(str::to_owned);
        }
    }

    async fn presigned(&self, key: ObjectKey, ttl: Duration) -> Result<Option<String>, StoreError> {
        let request = self.signer.get_object().bucket(&self.bucket).key(key.to_string());
        // Only a time that S3 does not know is refused.
        let Ok(presigning) = PresigningConfig::expires_in(ttl) else { return Ok(None) };
        let signed = request.presigned(presigning).await;
        let signed = signed.map_err(|error| refusal("signing an address", &error))?;
        Ok(Some(signed.uri().to_owned()))
    }

    async fn owner(&self) -> Result<Option<Bytes>, StoreError> {
        Ok(self.read_owner().await?.map(|(owner, _)| owner))
    }

    async fn set_owner(&self, over: Option<&Bytes>, owner: Bytes) -> Result<bool, StoreError> {
        let found = self.read_owner().await?;
        if found.as_ref().map(|(found, _)| found) != over {
            return Ok(false);
        }
        let request = || {
            let request = self.client.put_object().bucket(&self.bucket).key(OWNER_NAME);
            request.body(SdkStream::from(owner.clone()))
        };
        let mut sent = match &found {
            None => request().if_none_match("*").send().await,
            Some((_, tag)) => request().set_if_match(tag.clone()).send().await,
        };
        // Ceph's gateway compares with the tag as it keeps it, without the quotes (seen with 16.2).
        if let (Some((_, Some(tag))), Err(error)) = (&found, &sent)
            && status(error) == Some(412)
        {
            sent = request().if_match(tag.trim_matches('"')).send().await;
        }
        let sent = match sent {
            Err(error) if matches!(status(&error), Some(409 | 412)) => return Ok(false),
            // A service that compares nothing.
            Err(error) if status(&error) == Some(501) => request().send().await,
            sent => sent,
        };
        sent.map(|_| true).map_err(|error| refusal("writing whose bucket it is", &error))
    }

    async fn usage(&self) -> Result<Usage, StoreError> {
        let usage = bucket_usage(&self.client, &self.bucket).await;
        usage.map_err(|error| refusal("asking for the bucket's usage", &error))
    }

    async fn probe(&self) -> Result<(), StoreError> {
        let head = self.client.head_bucket().bucket(&self.bucket).send().await;
        head.map(drop).map_err(|error| refusal("looking at the bucket", &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_line_has_the_more_time_the_more_is_sent() {
        for (bytes, seconds) in [(0, 30), (1, 31), (8 << 20, 46), (256 << 20, 542)] {
            let config = sending(bytes).build();
            let timeouts = config.timeout_config().expect("they are set");
            assert_eq!(timeouts.operation_attempt_timeout(), Some(Duration::from_secs(seconds)));
            assert_eq!(timeouts.read_timeout(), None);
        }
    }
}
