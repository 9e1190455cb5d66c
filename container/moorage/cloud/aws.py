"""AWS as every command of the cloud reaches it: clients with deadlines and retries, and errors that say what to do."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import boto3
import botocore.exceptions as boto
from botocore.config import Config

from moorage.errors import CloudError, ConfigError

CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0
ATTEMPTS = 5

_DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "KmsException", "403"}
_UNKNOWN_KEYS = {
    "UnrecognizedClientException", "InvalidClientTokenId", "InvalidAccessKeyId", "SignatureDoesNotMatch",
    "InvalidSignatureException", "AuthFailure",
}  # fmt: skip
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
_THROTTLED = {
    "Throttling", "ThrottlingException", "ThrottledException", "RequestThrottledException", "RequestThrottled",
    "TooManyRequestsException", "RequestLimitExceeded", "SlowDown", "429",
}  # fmt: skip
_OTHER_REGION = {
    "PermanentRedirect", "301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "OptInRequired",
}  # fmt: skip
_SIGNED_OUT = (
    boto.SSOError, boto.TokenRetrievalError, boto.LoginError, boto.CredentialRetrievalError, boto.NoAuthTokenError,
)  # fmt: skip

_SIGN_IN = (
    "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or sign in by `aws sso login`; "
    "in CodeBuild the project's service role gives them"
)
_SIGN_IN_AGAIN = "sign in again (`aws sso login`), or set AWS_SESSION_TOKEN and its keys anew, and repeat the command"
_NO_REGION = "set AWS_REGION, or a region in the profile that AWS_PROFILE names"


class Passing(CloudError):
    """AWS is not reached, or takes no more requests: the same may work a minute later."""


def client(
    service: str, env: Mapping[str, str], region: str | None = None, *, read_seconds: float = READ_SECONDS
) -> Any:
    """A boto3 client with deadlines and retries. Raises CloudError where there is no region or no such profile.

    env: gives region, profile, keys and endpoint, where it has them; what else boto3 looks at (its files, the roles of
    CodeBuild and of instances) it finds by itself. AWS_RETRY_MODE and AWS_MAX_ATTEMPTS win over the retries set here.
    """
    retries = {
        "mode": env.get("AWS_RETRY_MODE") or "standard",
        "total_max_attempts": _attempts(env.get("AWS_MAX_ATTEMPTS", "")),
    }
    config = Config(connect_timeout=CONNECT_SECONDS, read_timeout=read_seconds, retries=retries)
    with aws_errors(f"cannot use AWS for {service}"):
        return _session(env, region).client(service, config=config, endpoint_url=_endpoint(service, env))


def account(env: Mapping[str, str], region: str | None = None) -> str:
    """The account of the credentials: 12 digits. Raises CloudError."""
    sts = client("sts", env, region)
    with aws_errors("cannot ask AWS whose these credentials are"):
        return str(sts.get_caller_identity()["Account"])


def _session(env: Mapping[str, str], region: str | None) -> boto3.Session:
    names = {
        "aws_access_key_id": "AWS_ACCESS_KEY_ID",
        "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY",
        "aws_session_token": "AWS_SESSION_TOKEN",
    }
    keys: dict[str, str | None] = {name: env[variable] for name, variable in names.items() if env.get(variable)}
    profile = env.get("AWS_PROFILE") or env.get("AWS_DEFAULT_PROFILE")
    found = region_of(env, region)
    # A profile that is given wins over keys; as environment variables they stand the other way round.
    return boto3.Session(region_name=found, **(keys or {"profile_name": profile or None}))


def region_of(env: Mapping[str, str], region: str | None = None) -> str | None:
    """`region` where it is given, else the environment's; None leaves it to boto3's own files."""
    return region or env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or None


def _endpoint(service: str, env: Mapping[str, str]) -> str | None:
    own = env.get("AWS_ENDPOINT_URL_" + service.upper().replace("-", "_").replace(" ", "_"))
    return own or env.get("AWS_ENDPOINT_URL") or None


def _attempts(text: str) -> int:
    if text and not text.isdecimal():
        raise ConfigError(f"AWS_MAX_ATTEMPTS={text} is not a number", fix="give a number of attempts, or unset it")
    return max(int(text), 1) if text else ATTEMPTS


@contextlib.contextmanager
def aws_errors(what: str, *, allow: str = "") -> Iterator[None]:
    """Turns boto3's errors into CloudError: `what`, the cause, the remedy.

    allow: the IAM action it takes, for services that do not name it when they refuse.
    """
    try:
        yield
    except (boto.NoCredentialsError, boto.PartialCredentialsError) as error:
        raise CloudError(what, why=f"there are no AWS credentials ({error})", fix=_SIGN_IN) from None
    except (boto.NoRegionError, boto.InvalidRegionError) as error:
        why = "no region is set" if isinstance(error, boto.NoRegionError) else str(error)
        raise CloudError(what, why=why, fix=_NO_REGION) from None
    except boto.ProfileNotFound as error:
        raise CloudError(what, why=str(error), fix="`aws configure list-profiles` lists those there are") from None
    except _SIGNED_OUT as error:
        raise CloudError(what, why=f"the sign-in to AWS has ended ({error})", fix=_SIGN_IN_AGAIN) from None
    except boto.ClientError as error:
        raise refused(what, error, allow=allow) from None
    except (boto.ConnectionError, boto.HTTPClientError) as error:
        why = f"AWS is not reached: {error}"
        fix = "check AWS_REGION, the network, and AWS_ENDPOINT_URL if it is set"
        raise Passing(what, why=why, fix=fix) from None
    except boto.ParamValidationError as error:
        raise CloudError(what, why=f"the request is not valid: {error}", fix="correct what it names") from None
    except boto.BotoCoreError as error:
        raise CloudError(what, why=f"{type(error).__name__}: {error}", fix=_SIGN_IN) from None


def refused(what: str, error: boto.ClientError, *, allow: str = "") -> CloudError:
    """Cause and remedy for an error that AWS answered. allow: as in `aws_errors`."""
    code, message = error_code(error), str(error.response.get("Error", {}).get("Message", ""))
    if code in _DENIED:
        # A bare 403 comes with a page of its sender, a proxy often.
        why = "access denied" if code == "403" else f"access denied: {message}"
        return CloudError(what, why=why, fix=_permission(message, allow))
    if re.search("signature (expired|not yet current)|too skewed", message, re.IGNORECASE):
        fix = "set the clock of this machine (timedatectl), and repeat the command"
        return CloudError(what, why=f"this machine's clock is not AWS's ({message})", fix=fix)
    if code in _UNKNOWN_KEYS:
        return CloudError(what, why=f"AWS does not know these credentials ({code})", fix=_SIGN_IN)
    if code in _EXPIRED:
        return CloudError(what, why=f"the AWS credentials have expired ({code})", fix=_SIGN_IN_AGAIN)
    if code in _THROTTLED:
        fix = "wait a minute and repeat the command; AWS_MAX_ATTEMPTS has it try more often"
        return Passing(what, why=f"AWS takes no more requests for now ({code}: {message})", fix=fix)
    if code in _OTHER_REGION:
        why = f"it is in another region, or the region is not enabled ({code}: {message})"
        return CloudError(what, why=why, fix="name the region it is in by AWS_REGION")
    if code in {"ResourceLimitExceeded", "ServiceQuotaExceededException"}:
        fix = "ask for more in Service Quotas, under the name given; or take another instance type or fewer of them"
        return CloudError(what, why=f"the account's quota does not allow it ({message})", fix=fix)
    if code == "ResourceInUse":
        fix = "give another name; a name is taken for good once a job had it"
        return CloudError(what, why=f"the name is taken, or it is in use ({message})", fix=fix)
    return CloudError(what, why=f"AWS answered {code}: {message}", fix="docs/troubleshooting.md, under AWS")


def error_code(error: boto.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def is_missing(error: boto.ClientError) -> bool:
    """Whether SageMaker answers that there is no such thing, for which it has no code of its own."""
    message = str(error.response.get("Error", {}).get("Message", "")).lower()
    lost = "not found" in message or "could not find" in message
    return lost and error_code(error) in ("ValidationException", "ResourceNotFound")


def _permission(message: str, allow: str) -> str:
    """AWS names action and resource itself: `... is not authorized to perform: ACTION on resource: ARN ...`."""
    action = re.search(r"to perform:? ([a-z0-9-]+:[A-Za-z*]+)", message)
    resource = re.search(r"on resource:? ([^\s,]+[^\s,.])", message)
    needed = action[1] if action else allow
    where = f" on {resource[1]}" if resource else ""
    if "explicit deny" in message:
        return f"a policy denies {needed or 'it'}{where}: ask who keeps the account's policies"
    return f"allow {needed or 'it'}{where} to the user or role that runs this; docs/iam.md has the policies"
