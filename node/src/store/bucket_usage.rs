//! How full a bucket is, as Ceph's gateway tells in headers of its answer to HeadBucket: what it
//! holds, and the bucket's and the owner's quota where they have one. Other services are silent.
//!
//! Newer gateways count only when they are asked to (`read-stats`); older ones ignore the word.

use std::sync::Arc;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::{BoxError, SdkError};
use aws_sdk_s3::operation::head_bucket::HeadBucketError;
use parking_lot::Mutex;

use super::Usage;

type Refused = SdkError<HeadBucketError, aws_sdk_s3::config::http::HttpResponse>;

/// Asks for it.
///
/// # Errors
/// Where the service does not answer.
pub async fn bucket_usage(client: &Client, bucket: &str) -> Result<Usage, Refused> {
    let heard = Heard::default();
    let asked = client.head_bucket().bucket(bucket).customize();
    let asked = asked.mutate_request(|request| {
        let mark = if request.uri().contains('?') { '&' } else { '?' };
        let uri = format!("{}{mark}read-stats=true", request.uri());
        // An address with a word more is one still.
        let _ = request.set_uri(uri);
    });
    asked.interceptor(heard.clone()).send().await?;
    let usage = *heard.usage.lock();
    Ok(usage)
}

/// Listens to the headers that the SDK throws away.
#[derive(Debug, Clone, Default)]
struct Heard {
    usage: Arc<Mutex<Usage>>,
}

impl Intercept for Heard {
    fn name(&self) -> &'static str {
        "bucket usage"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let headers = context.response().headers();
        *self.usage.lock() = read(|name| headers.get(name));
        Ok(())
    }
}

fn read<'a>(header: impl Fn(&'static str) -> Option<&'a str>) -> Usage {
    // A quota that is not set is -1, or not there.
    let number = |name| header(name)?.trim().parse::<u64>().ok();
    let quotas = ["x-rgw-quota-bucket-size", "x-rgw-quota-user-size"].map(number);
    Usage {
        used_bytes: number("x-rgw-bytes-used"),
        total_bytes: quotas.into_iter().flatten().filter(|bytes| *bytes > 0).min(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_quota_counts_and_a_silent_service_says_nothing() {
        let headers = |name| match name {
            "x-rgw-bytes-used" => Some("4096"),
            "x-rgw-quota-bucket-size" => Some("-1"),
            "x-rgw-quota-user-size" => Some("1048576"),
            _ => None,
        };
        let wanted = Usage { used_bytes: Some(4096), total_bytes: Some(1 << 20) };
        assert_eq!(read(headers), wanted);
        assert_eq!(read(|_| None), Usage::default());
        assert_eq!(read(|_| Some("much")), Usage::default());
    }
}
