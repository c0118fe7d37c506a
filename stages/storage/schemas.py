"""The columns of every table of a dataset of clips."""

import pyarrow as pa

LABELS = pa.map_(pa.string(), pa.list_(pa.string()))
"""Values by column: several for a multi-label."""

BOXES = pa.list_(
    pa.struct(
        [
            ("time_s", pa.float64()),
            *((edge, pa.float32()) for edge in ("left", "top", "right", "bottom")),
            ("track", pa.string()),
            ("labels", pa.list_(pa.string())),
        ]
    )
)

INDEX = pa.schema(
    [
        ("clip_id", pa.string()),
        ("source_id", pa.string()),
        ("key", pa.string()),
        ("native_id", pa.string()),
        ("start_s", pa.float64()),
        ("start_frame", pa.int32()),
        ("num_frames", pa.int32()),
        ("fps", pa.float64()),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("ordinal", pa.int32()),
        ("slot", pa.int32()),
        ("offset_bytes", pa.int64()),
        ("size_bytes", pa.int64()),
        ("crc32c", pa.uint32()),
        ("motion_offset_bytes", pa.int64()),
        ("motion_size_bytes", pa.int64()),
        ("motion_crc32c", pa.uint32()),
        ("labels", LABELS),
        ("boxes", BOXES),
    ]
)

SOURCES = pa.schema(
    [
        ("source_id", pa.string()),
        ("key", pa.string()),
        ("size_bytes", pa.int64()),
        ("status", pa.string()),
        ("num_clips", pa.int32()),
        ("num_frames", pa.int32()),
        ("short_spans", pa.int32()),
        ("container", pa.string()),
        ("codec", pa.string()),
        ("pixel_format", pa.string()),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("rotation_deg", pa.int32()),
        ("fps", pa.float64()),
        ("duration_s", pa.float64()),
        ("num_frames_decoded", pa.int32()),
        ("variable_rate", pa.bool_()),
        ("interlaced", pa.bool_()),
        ("transfer", pa.string()),
        ("decode_errors", pa.int32()),
        ("ordinal", pa.int32()),
    ]
)

QUARANTINE = pa.schema(
    [
        ("source_id", pa.string()),
        ("key", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("ordinal", pa.int32()),
    ]
)

PLAN = pa.schema(
    [
        ("ordinal", pa.int32()),
        ("source_id", pa.string()),
        ("key", pa.string()),
        ("size_bytes", pa.int64()),
        ("labels", LABELS),
        (
            "spans",
            pa.list_(
                pa.struct(
                    [
                        ("native_id", pa.string()),
                        ("start_s", pa.float64()),
                        ("end_s", pa.float64()),
                        ("labels", LABELS),
                        ("boxes", BOXES),
                    ]
                )
            ),
        ),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
