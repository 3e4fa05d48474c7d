"""The shapes of the API's objects, as far as server-side apply and decoding need them.

Source: the OpenAPI document of Kubernetes 1.37 (``x-kubernetes-list-type``, ``-list-map-keys``, ``-map-type``).
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from nri_dranet.testing.api_errors import StatusError
from nri_dranet.testing.api_json import RawJson, clone

if TYPE_CHECKING:
    from collections.abc import Mapping

_QUANTITY: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Scalar:
    """A text, number or truth value; ``kind`` as OpenAPI says it, or ``time`` or ``quantity``, which are normalised."""

    kind: str = "string"


@dataclass(frozen=True, slots=True)
class Raw:
    """Any JSON, kept as it is and owned as a whole (``RawExtension``)."""


@dataclass(frozen=True, slots=True)
class Open:
    """Any JSON whose maps may have several owners."""


@dataclass(frozen=True, slots=True)
class Record:
    """A map with known fields.

    Attributes:
        fields: Field → its shape.
        atomic: Owned as a whole.
        always: What stands in an answer even if nobody has set it.
        open: Other fields are kept too.
    """

    fields: Mapping[str, Shape]
    atomic: bool = False
    always: Mapping[str, Any] = field(default_factory=dict)
    open: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A map with free keys."""

    element: Shape


@dataclass(frozen=True, slots=True)
class Items:
    """A list: with ``keys`` its items are told apart by these fields, ``unique`` by their value, else it is atomic.

    Attributes:
        element: The shape of an item.
        keys: Fields that together are an item's key.
        unique: Whether an item's value is its key.
        optional: Keys that may be missing; another that is missing counts as empty text.
    """

    element: Shape
    keys: tuple[str, ...] = ()
    unique: bool = False
    optional: frozenset[str] = frozenset()

    @property
    def atomic(self) -> bool:
        """Whether it is owned as a whole."""
        return not self.keys and not self.unique


Shape = Scalar | Raw | Open | Record | Table | Items

STRING: Final = Scalar()
INTEGER: Final = Scalar("integer")
BOOLEAN: Final = Scalar("boolean")
QUANTITY: Final = Scalar("quantity")
TIME: Final = Scalar("time")
STRINGS: Final = Items(STRING)
TEXTS: Final = Table(STRING)
OPEN: Final = Open()


METADATA: Final = Record(
    {
        "name": STRING,
        "generateName": STRING,
        "namespace": STRING,
        "uid": STRING,
        "resourceVersion": STRING,
        "generation": INTEGER,
        "creationTimestamp": STRING,
        "deletionTimestamp": STRING,
        "deletionGracePeriodSeconds": INTEGER,
        "labels": TEXTS,
        "annotations": TEXTS,
        "finalizers": Items(STRING, unique=True),
        "ownerReferences": Items(
            Record(
                {
                    "apiVersion": STRING,
                    "kind": STRING,
                    "name": STRING,
                    "uid": STRING,
                    "controller": BOOLEAN,
                    "blockOwnerDeletion": BOOLEAN,
                },
                atomic=True,
            ),
            keys=("uid",),
        ),
        "managedFields": Items(OPEN),
        "selfLink": STRING,
    }
)

_TOLERATION: Final = Record(
    {
        "key": STRING,
        "operator": STRING,
        "value": STRING,
        "effect": STRING,
        "tolerationSeconds": INTEGER,
    }
)
_SELECTOR: Final = Record({"cel": Record({"expression": STRING})})
_OPAQUE: Final = Record({"driver": STRING, "parameters": Raw()})
_CAPACITY: Final = Record({"requests": Table(QUANTITY)})
_REQUEST: Final[dict[str, Shape]] = {
    "deviceClassName": STRING,
    "selectors": Items(_SELECTOR),
    "allocationMode": STRING,
    "count": INTEGER,
    "tolerations": Items(_TOLERATION),
    "capacity": _CAPACITY,
}
_NODE_REQUIREMENT: Final = Record({"key": STRING, "operator": STRING, "values": STRINGS})
_NODE_SELECTOR: Final = Record(
    {
        "nodeSelectorTerms": Items(
            Record({"matchExpressions": Items(_NODE_REQUIREMENT), "matchFields": Items(_NODE_REQUIREMENT)}, atomic=True)
        )
    },
    atomic=True,
)
CONDITION: Final = Record(
    {
        "type": STRING,
        "status": STRING,
        "observedGeneration": INTEGER,
        "lastTransitionTime": TIME,
        "reason": STRING,
        "message": STRING,
    },
    always={"type": "", "status": "", "lastTransitionTime": None, "reason": "", "message": ""},
)

CLAIM_SPEC: Final = Record(
    {
        "devices": Record(
            {
                "requests": Items(
                    Record(
                        {
                            "name": STRING,
                            "exactly": Record({**_REQUEST, "adminAccess": BOOLEAN}),
                            "firstAvailable": Items(Record({"name": STRING, **_REQUEST})),
                        }
                    )
                ),
                "constraints": Items(
                    Record({"requests": STRINGS, "matchAttribute": STRING, "distinctAttribute": STRING})
                ),
                "config": Items(Record({"requests": STRINGS, "opaque": _OPAQUE})),
            }
        ),
    },
    always={"devices": {}},
)

CLAIM_STATUS: Final = Record(
    {
        "allocation": Record(
            {
                "devices": Record(
                    {
                        "results": Items(
                            Record(
                                {
                                    "request": STRING,
                                    "driver": STRING,
                                    "pool": STRING,
                                    "device": STRING,
                                    "adminAccess": BOOLEAN,
                                    "tolerations": Items(_TOLERATION),
                                    "bindingConditions": STRINGS,
                                    "bindingFailureConditions": STRINGS,
                                    "shareID": STRING,
                                    "consumedCapacity": Table(QUANTITY),
                                }
                            )
                        ),
                        "config": Items(Record({"source": STRING, "requests": STRINGS, "opaque": _OPAQUE})),
                    }
                ),
                "nodeSelector": _NODE_SELECTOR,
                "allocationTimestamp": STRING,
            }
        ),
        "reservedFor": Items(
            Record({"apiGroup": STRING, "resource": STRING, "name": STRING, "uid": STRING}), keys=("uid",)
        ),
        "devices": Items(
            Record(
                {
                    "driver": STRING,
                    "pool": STRING,
                    "device": STRING,
                    "shareID": STRING,
                    "conditions": Items(CONDITION, keys=("type",)),
                    "data": Raw(),
                    "networkData": Record({"interfaceName": STRING, "ips": STRINGS, "hardwareAddress": STRING}),
                },
                always={"driver": "", "pool": "", "device": "", "conditions": None},
            ),
            keys=("driver", "device", "pool", "shareID"),
            optional=frozenset({"shareID"}),
        ),
    }
)

_ATTRIBUTE: Final = Record(
    {
        "int": INTEGER,
        "bool": BOOLEAN,
        "string": STRING,
        "version": STRING,
        "ints": Items(INTEGER),
        "bools": Items(BOOLEAN),
        "strings": STRINGS,
        "versions": STRINGS,
    }
)
_POLICY: Final = Record(
    {
        "default": QUANTITY,
        "validValues": Items(QUANTITY),
        "validRange": Record({"min": QUANTITY, "max": QUANTITY, "step": QUANTITY}),
    }
)
_COUNTERS: Final = Table(Record({"value": QUANTITY}))

SLICE_SPEC: Final = Record(
    {
        "driver": STRING,
        "pool": Record({"name": STRING, "generation": INTEGER, "resourceSliceCount": INTEGER}),
        "nodeName": STRING,
        "nodeSelector": _NODE_SELECTOR,
        "allNodes": BOOLEAN,
        "perDeviceNodeSelection": BOOLEAN,
        "devices": Items(
            Record(
                {
                    "name": STRING,
                    "attributes": Table(_ATTRIBUTE),
                    "capacity": Table(Record({"value": QUANTITY, "requestPolicy": _POLICY})),
                    "consumesCounters": Items(Record({"counterSet": STRING, "counters": _COUNTERS})),
                    "nodeName": STRING,
                    "nodeSelector": _NODE_SELECTOR,
                    "allNodes": BOOLEAN,
                    "taints": Items(Record({"key": STRING, "value": STRING, "effect": STRING, "timeAdded": TIME})),
                    "bindsToNode": BOOLEAN,
                    "bindingConditions": STRINGS,
                    "bindingFailureConditions": STRINGS,
                    "allowMultipleAllocations": BOOLEAN,
                }
            )
        ),
        "sharedCounters": Items(Record({"name": STRING, "counters": _COUNTERS})),
    },
    always={"pool": {}},
)

CLASS_SPEC: Final = Record(
    {
        "selectors": Items(_SELECTOR),
        "config": Items(Record({"opaque": _OPAQUE})),
        "extendedResourceName": STRING,
    }
)

POD_CONDITIONS: Final = Items(OPEN, keys=("type",))
"""Conditions of pods and nodes: merged by type."""


def of_object(**parts: Shape) -> Record:
    """Return the shape of a whole object with the given parts beside its metadata; each is always there."""
    always = {name: decode({}, part) for name, part in parts.items()}
    return Record({"apiVersion": STRING, "kind": STRING, "metadata": METADATA, **parts}, always=always)


class DecodeError(Exception):
    """A value has the wrong type; the text is the decoder's."""


def decode(value: Any, shape: Shape, path: str = "") -> Any:
    """Return a value as the server's own types keep it: unknown fields and nulls go, what is always there comes.

    Raises:
        DecodeError: a value has the wrong type.
    """
    match shape:
        case Record():
            return _decode_record(value, shape, path)
        case Table():
            return {k: decode(v, shape.element, f"{path}.{k}") for k, v in _map(value, path).items()}
        case Items():
            if not isinstance(value, list):
                raise DecodeError(_wrong(value, path, "[]"))
            return [
                decode("" if item is None and shape.element == STRING else item, shape.element, path) for item in value
            ]
        case Scalar():
            return _decode_scalar(value, shape, path)
        case Raw():
            return value if not isinstance(value, dict) or isinstance(value, RawJson) else RawJson(value)
        case Open():
            return _without_nulls(value)


def _decode_record(value: Any, shape: Record, path: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, item in _map(value, path).items():
        inner = shape.fields.get(name)
        if item is None or (inner is None and not shape.open):
            continue
        decoded = decode(item, inner or OPEN, f"{path}.{name}" if path else name)
        # Lists and maps that are empty are left out of an answer; records are not.
        if decoded in ([], {}) and isinstance(inner, Items | Table):
            continue
        found[name] = decoded
    return {**{name: clone(value) for name, value in shape.always.items() if name not in found}, **found}


def _decode_scalar(value: Any, shape: Scalar, path: str) -> Any:
    if not fits(value, shape.kind):
        raise DecodeError(_wrong(value, path, {"integer": "int64", "boolean": "bool"}.get(shape.kind, "string")))
    if shape.kind == "time":
        return _time(value)
    if shape.kind == "quantity":
        text = str(value)
        if not _QUANTITY.fullmatch(text):
            raise DecodeError(f"quantities must match the regular expression '{_QUANTITY.pattern}'")
        return text
    return value


def fits(value: Any, kind: str) -> bool:
    """Tell whether a value has the type of a scalar."""
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, {"integer": int, "quantity": int | float | str, "boolean": bool}.get(kind, str))


def _time(text: str) -> str:
    """Return a time as the server keeps it: in UTC, without fractions of a second."""
    found = None
    with contextlib.suppress(ValueError):
        found = datetime.fromisoformat(text)
    if found is None or found.tzinfo is None:
        raise DecodeError(f'parsing time "{text}" as "2006-01-02T15:04:05Z07:00": cannot parse "{text}"')
    return found.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _map(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DecodeError(_wrong(value, path, "map"))
    return value


def _wrong(value: Any, path: str, wanted: str) -> str:
    given = {str: "string", bool: "bool", int: "number", float: "number", list: "array", dict: "object"}
    word = given.get(type(value), "object" if isinstance(value, dict) else "null")
    return f"json: cannot unmarshal {word} into Go struct field .{path} of type {wanted}"


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """A kind of object.

    Attributes:
        group: The API group, empty for the core.
        version: The version that is served.
        plural: The word in paths.
        kind: The kind's name.
        namespaced: Whether it lives in namespaces.
        shape: The shape of an object.
        selectors: Fields that a field selector may name, as paths.
        has_status: Whether ``status`` is a subresource.
        has_generation: Whether ``metadata.generation`` counts changes of the spec.
    """

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool
    shape: Record
    selectors: tuple[str, ...] = ()
    has_status: bool = False
    has_generation: bool = False

    @property
    def api_version(self) -> str:
        """Group and version in one."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def base(self) -> str:
        """The path below which it is served."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    def decode(self, value: Any) -> dict[str, Any]:
        """Decode a body.

        Raises:
            StatusError: it is no object of this kind.
        """
        if not isinstance(value, dict):
            raise StatusError(400, f"the object provided is unrecognized (must be of type {self.kind})")
        version, kind = value.get("apiVersion", ""), value.get("kind", "")
        if (version, kind) not in ((self.api_version, self.kind), ("", "")):
            raise StatusError(
                400, f'{kind} in version "{version}" cannot be handled as a {self.kind}: unknown conversion'
            )
        found = decode({"metadata": {}, **value}, self.shape)
        found["apiVersion"], found["kind"] = self.api_version, self.kind
        assert isinstance(found, dict)  # noqa: S101 - a record decodes to a map
        return found


_DRA: Final = "resource.k8s.io"
_NAME: Final = ("metadata.name",)
_BOTH: Final = ("metadata.name", "metadata.namespace")
_POD_STATUS: Final = Record({"conditions": POD_CONDITIONS}, open=True)

CLAIMS: Final = Kind(
    _DRA,
    "v1",
    "resourceclaims",
    "ResourceClaim",
    namespaced=True,
    shape=of_object(spec=CLAIM_SPEC, status=CLAIM_STATUS),
    selectors=_BOTH,
    has_status=True,
)
SLICES: Final = Kind(
    _DRA,
    "v1",
    "resourceslices",
    "ResourceSlice",
    namespaced=False,
    shape=of_object(spec=SLICE_SPEC),
    selectors=(*_NAME, "spec.driver", "spec.nodeName", "spec.pool.name"),
    has_generation=True,
)
CLASSES: Final = Kind(
    _DRA,
    "v1",
    "deviceclasses",
    "DeviceClass",
    namespaced=False,
    shape=of_object(spec=CLASS_SPEC),
    selectors=_NAME,
    has_generation=True,
)
PODS: Final = Kind(
    "",
    "v1",
    "pods",
    "Pod",
    namespaced=True,
    shape=of_object(spec=OPEN, status=_POD_STATUS),
    selectors=(*_BOTH, "spec.nodeName", "spec.restartPolicy", "spec.serviceAccountName", "status.phase"),
    has_status=True,
)
NODES: Final = Kind(
    "",
    "v1",
    "nodes",
    "Node",
    namespaced=False,
    shape=of_object(spec=OPEN, status=_POD_STATUS),
    selectors=(*_NAME, "spec.unschedulable"),
    has_status=True,
)
NAMESPACES: Final = Kind(
    "",
    "v1",
    "namespaces",
    "Namespace",
    namespaced=False,
    shape=of_object(spec=OPEN, status=OPEN),
    selectors=(*_NAME, "status.phase"),
    has_status=True,
)
EVENTS: Final = Kind(
    "",
    "v1",
    "events",
    "Event",
    namespaced=True,
    shape=Record(
        {
            "apiVersion": STRING,
            "kind": STRING,
            "metadata": METADATA,
            "involvedObject": Record({}, atomic=True, open=True),
        },
        open=True,
        always={
            "involvedObject": {},
            "source": {},
            "firstTimestamp": None,
            "lastTimestamp": None,
            "eventTime": None,
            "reportingComponent": "",
            "reportingInstance": "",
        },
    ),
    selectors=(
        *_BOTH,
        *(f"involvedObject.{part}" for part in ("kind", "namespace", "name", "uid", "apiVersion", "fieldPath")),
        "reason",
        "type",
        "source",
        "reportingComponent",
    ),
)

KINDS: Final = (CLAIMS, SLICES, CLASSES, PODS, NODES, NAMESPACES, EVENTS)
