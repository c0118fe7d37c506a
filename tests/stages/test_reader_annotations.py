"""Official annotations are read as published, traps included; what is malformed is named with its spot and a remedy."""

import json
from pathlib import Path

import pytest

from models import extension
from stages.errors import ConfigError
from stages.readers import Box, Source
from stages.storage.workspace import Workspace

Files = dict[str, str]


def read(root: Path, name: str, files: Files, **fields: object) -> dict[str, Source]:
    """The sources of a reader by key, from annotations of these names and texts."""
    (root / "videos").mkdir(exist_ok=True)
    for file, text in files.items():
        (root / file).write_bytes(text.encode())
    value = {"name": name, "annotations": str(root), "videos": str(root / "videos"), **fields}
    sources = list(extension.load("stages.readers", value).sources(Workspace(root / "workspace")))
    found = {source.key: source for source in sources}
    assert len(found) == len(sources)
    return found


def labels(**columns: object) -> dict[str, tuple[str, ...]]:
    return {name.rstrip("_"): value if isinstance(value, tuple) else (str(value),) for name, value in columns.items()}


KINETICS = "label,youtube_id,time_start,time_end,split,is_cc\n"


def test_kinetics_gives_a_source_per_row_with_class_numbers_from_the_sorted_train_list(tmp_path: Path) -> None:
    train = f'{KINETICS}"testifying, in court",---QUuC4vJs,84.0,94.0,train,0\r\nair drumming,-3B32lodo2M,59,69,train,0\r\n'
    sources = read(tmp_path, "kinetics", {"train.csv": train, "val.csv": f"{KINETICS}air drumming,_dbc,40,50,val,0\n"})
    assert list(sources) == ["---QUuC4vJs_000084_000094.mp4", "-3B32lodo2M_000059_000069.mp4", "_dbc_000040_000050.mp4"]
    first, *_, last = sources.values()
    assert first.labels == labels(class_="testifying, in court", class_id=1, split="train", group="---QUuC4vJs")
    assert last.labels == labels(class_="air drumming", class_id=0, split="val", group="_dbc")
    assert first.spans is None
    assert first.place.url == str(tmp_path / "videos" / first.key)


def test_kinetics_test_rows_need_no_label_and_columns_come_in_any_order(tmp_path: Path) -> None:
    files = {
        "kinetics_600_train.csv": "label,youtube_id,time_start,time_end,split\njump,a,0,10,train\n",
        "kinetics_600_test.csv": "youtube_id,time_start,time_end,split\nb,1,11,test\n",
        "validate.csv": "split,time_end,time_start,youtube_id,label\nvalidate,12,2,c,jump\n",
    }
    sources = read(tmp_path, "kinetics", files, num_classes=600, splits=["val", "test"], file="{split}/{class}/{id}.mp4")
    assert {key: source.labels.get("class") for key, source in sources.items()} == {
        "val/jump/c.mp4": ("jump",),
        "test/b.mp4": None,
    }


def test_kinetics_is_read_under_the_header_of_activitynet(tmp_path: Path) -> None:
    text = "YouTube Identifier,Start time,End time,Class label\na,0,10,jump\n"
    sources = read(tmp_path, "kinetics", {"kinetics-400_train.csv": text}, splits=["train"])
    assert sources["a_000000_000010.mp4"].labels["class"] == ("jump",)


def test_kinetics_cuts_whole_videos_at_their_rows(tmp_path: Path) -> None:
    train = f"{KINETICS}jump,a,0,10,train,0\nrun,b,0,10,train,0\nrun,a,30.5,40.5,train,0\n"
    sources = read(tmp_path, "kinetics", {"train.csv": train}, splits=["train"], trimmed=False, file="{id}.mkv")
    assert list(sources) == ["a.mkv", "b.mkv"]
    assert [(span.native_id, span.start_s, span.end_s, span.labels["class"]) for span in sources["a.mkv"].spans or ()] == [
        ("a_000000_000010", 0.0, 10.0, ("jump",)),
        ("a_000030_000040", 30.5, 40.5, ("run",)),
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("jump,a,zero,10,train,0\n", "line 2: time_start is 'zero', which is not a number"),
        ("jump,a,nan,10,train,0\n", "line 2: time_start is 'nan'"),
        ("jump,a,10,0,train,0\n", "line 2: runs from 10 s to 0 s"),
        ("jump,,0,10,train,0\n", "line 2: nothing stands in column 'youtube_id'"),
        ("jump,../a,0,10,train,0\n", "line 2: names '../a_000000_000010.mp4', which is not below"),
        ("jump,a,0,10,train,0\nrun,a,0,10,train,0\n", "line 3: .*comes a second time"),
        ("jump,a,0,10,train\n", "line 2: has 5 fields and not the 6"),
    ],
)
def test_kinetics_rows_that_cannot_be_meant_are_named(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"train\.csv, {message}"):
        read(tmp_path, "kinetics", {"train.csv": KINETICS + rows}, splits=["train"])


def test_kinetics_labels_unknown_to_the_train_list_are_named(tmp_path: Path) -> None:
    files = {"train.csv": f"{KINETICS}jump,a,0,10,train,0\n", "val.csv": f"{KINETICS}Jump,b,0,10,val,0\n"}
    with pytest.raises(ConfigError, match=r"val\.csv, line 2: label 'Jump' is not in the list of split train"):
        read(tmp_path, "kinetics", files)


SSV2_TRAIN = json.dumps(
    [
        {
            "id": "78687",
            "label": "holding potato next to vicks vaporub bottle",
            "template": "Holding [something] next to [something]",
            "placeholders": ["potato", "vicks vaporub bottle"],
        }
    ]
)
SSV2 = {
    "something-something-v2-train.json": SSV2_TRAIN,
    "something-something-v2-validation.json": '[{"id": 7, "label": "x", "template": "Closing [something]"}]',
    "something-something-v2-test.json": '[{"id": "1420"}]',
    "something-something-v2-labels.json": '{"Closing something": "1", "Holding something next to something": "0"}',
}


def test_something_something_takes_the_template_without_brackets_as_class(tmp_path: Path) -> None:
    sources = read(tmp_path, "something_something_v2", SSV2, splits=["train", "val", "test"])
    assert list(sources) == ["78687.webm", "7.webm", "1420.webm"]
    assert sources["78687.webm"].labels == labels(
        class_="Holding something next to something",
        class_id=0,
        split="train",
        caption="holding potato next to vicks vaporub bottle",
        placeholders=("potato", "vicks vaporub bottle"),
    )
    assert sources["7.webm"].labels == labels(class_="Closing something", class_id=1, split="val", caption="x")
    assert sources["1420.webm"].labels == labels(split="test")


def test_something_something_reads_the_names_and_the_answers_of_the_newer_release(tmp_path: Path) -> None:
    files = {name.removeprefix("something-something-v2-"): text for name, text in SSV2.items()}
    files["test-answers.csv"] = "1420;Closing something\r\n"
    sources = read(tmp_path, "something_something_v2", files, splits=["test"])
    assert sources["1420.webm"].labels == labels(class_="Closing something", class_id=1, split="test")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("train.json", "[{", "train.json, line 1: is not JSON"),
        ("train.json", "{}", "train.json, line 1: is not a JSON list"),
        ("train.json", '[{"id": "1"}]', "train.json, entry 1: is not an object with id, template"),
        ("train.json", '[{"id": "1", "template": "Eating"}]', "entry 1: template 'Eating' is none of the 2 labels"),
        ("train.json", '[{"id": "../1", "template": "Closing [something]"}]', "entry 1: names '../1.webm'"),
        ("labels.json", "[]", "labels.json, line 1: is not an object of templates"),
    ],
)
def test_something_something_files_that_cannot_be_meant_are_named(tmp_path: Path, file: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, "something_something_v2", {**SSV2, f"something-something-v2-{file}": text})


EPIC_HEADER = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
)
EPIC_ROW = (
    "P01_102_0,P01,P01_102,00:00:01.100,00:00:00.54,01:02:03.25,27,111,"
    "take knife and plate,take,0,knife,4,\"['knife', 'plate']\",\"[4, 2]\"\n"
)
EPIC = {
    "EPIC_100_train.csv": EPIC_HEADER + EPIC_ROW,
    "EPIC_100_validation.csv": EPIC_HEADER,
    "EPIC_100_verb_classes.csv": "id,key,instances,category\n0,take,\"['collect', 'take']\",access\n",
    "EPIC_100_noun_classes.csv": "id,key,instances,category\n2,plate,[],x\n4,knife,[],x\n",
}


def test_epic_kitchens_gives_whole_videos_with_a_span_per_action(tmp_path: Path) -> None:
    more = EPIC_ROW.replace("P01_102_0", "P01_102_1").replace("01:02:03.25", "00:00:02.23")
    sources = read(tmp_path, "epic_kitchens_100", {**EPIC, "EPIC_100_train.csv": EPIC_HEADER + EPIC_ROW + more})
    assert list(sources) == ["P01/videos/P01_102.MP4"]
    first, second = sources["P01/videos/P01_102.MP4"].spans or ()
    assert (first.native_id, first.start_s, first.end_s) == ("P01_102_0", 0.54, 3723.25)
    assert (second.native_id, second.end_s) == ("P01_102_1", 2.23)
    assert first.labels == labels(
        split="train",
        group="P01",
        class_="take knife",
        verb="take",
        verb_id=0,
        noun="knife",
        noun_id=4,
        nouns=("knife", "plate"),
        narration="take knife and plate",
    )


def test_epic_kitchens_is_read_with_the_leading_uid_of_older_copies(tmp_path: Path) -> None:
    files = {**EPIC, "EPIC_100_train.csv": f"uid,{EPIC_HEADER}17,{EPIC_ROW}"}
    assert [span.native_id for span in read(tmp_path, "epic_kitchens_100", files)["P01/videos/P01_102.MP4"].spans or ()] == [
        "P01_102_0"
    ]


def test_epic_kitchens_test_times_have_no_labels(tmp_path: Path) -> None:
    header, row = ",".join(EPIC_HEADER.split(",")[:8]), ",".join(EPIC_ROW.split(",")[:8])
    files = {**EPIC, "EPIC_100_test_timestamps.csv": f"{header}\n{row}\n"}
    (span,) = read(tmp_path, "epic_kitchens_100", files, splits=["test"])["P01/videos/P01_102.MP4"].spans or ()
    assert span.labels == labels(split="test", group="P01")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("00:00:00.54", "0.54", "line 2: start_timestamp is '0.54', which is not HH:MM:SS.ss"),
        ("00:00:00.54", "00:00:x", "line 2: start_timestamp is 'x', which is not a number"),
        ("00:00:00.54", "02:00:00.54", "line 2: runs from 7200.54 s"),
        ("take,0,", "take,7,", "line 2: verb class 7 is not in EPIC_100_verb_classes.csv"),
        ("[4, 2]", "[4, 3]", "line 2: noun class 3 is not in EPIC_100_noun_classes.csv"),
        ("[4, 2]", "[4, __import__('os')]", "line 2: all_noun_classes is .* not a list of numbers"),
        ("P01,P01_102", ",P01_102", "line 2: nothing stands in column 'participant_id'"),
    ],
)
def test_epic_kitchens_rows_that_cannot_be_meant_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    files = {**EPIC, "EPIC_100_train.csv": EPIC_HEADER + EPIC_ROW.replace(old, new, 1)}
    with pytest.raises(ConfigError, match=rf"EPIC_100_train\.csv, {message}"):
        read(tmp_path, "epic_kitchens_100", files)


def test_epic_kitchens_names_an_action_that_comes_twice(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"line 3: .* has a second span 'P01_102_0'"):
        read(tmp_path, "epic_kitchens_100", {**EPIC, "EPIC_100_train.csv": EPIC_HEADER + EPIC_ROW + EPIC_ROW})


DIVING = {
    "Diving48_V2_train.json": '[{"vid_name": "_8Vy3dlHg2w_00000", "label": 1, "start_frame": 0, "end_frame": 129}]',
    "Diving48_V2_test.json": '[{"vid_name": "-x_00003", "label": 0, "start_frame": 0, "end_frame": 98}]',
    "Diving48_vocab.json": '[["Back", "15som", "05Twis", "FREE"], ["Forward", "25som", "NoTwis", "PIKE"]]',
}


def test_diving48_takes_class_and_its_parts_from_the_vocabulary(tmp_path: Path) -> None:
    sources = read(tmp_path, "diving48", DIVING)
    assert sources["_8Vy3dlHg2w_00000.mp4"].labels == labels(
        class_="Forward 25som NoTwis PIKE",
        class_id=1,
        split="train",
        group="_8Vy3dlHg2w",
        takeoff="Forward",
        somersault="25som",
        twist="NoTwis",
        position="PIKE",
    )
    assert sources["-x_00003.mp4"].labels["split"] == ("test",)


@pytest.mark.parametrize("label", ["2", '"1"', "-1", "null"])
def test_diving48_labels_outside_of_the_vocabulary_are_named(tmp_path: Path, label: str) -> None:
    files = {**DIVING, "Diving48_V2_train.json": f'[{{"vid_name": "a_0", "label": {label}}}]'}
    with pytest.raises(ConfigError, match=r"Diving48_V2_train\.json, entry 1: label .* is none of the 2"):
        read(tmp_path, "diving48", files)


UCF = {
    "classInd.txt": "1 ApplyEyeMakeup\r\n2 HandstandPushups\r\n",
    "trainlist01.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r\n"
    "HandstandPushups/v_HandStandPushups_g09_c01.avi 2 \r\n",
    "testlist01.txt": "HandstandPushups/v_HandStandPushups_g01_c01.avi\r\n",
}


def test_ucf101_numbers_classes_from_one_and_groups_clips_of_one_video(tmp_path: Path) -> None:
    sources = read(tmp_path, "ucf101", UCF)
    assert list(sources) == [
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi",
        "HandstandPushups/v_HandStandPushups_g09_c01.avi",
        "HandstandPushups/v_HandStandPushups_g01_c01.avi",
    ]
    found = [source.labels for source in sources.values()]
    assert found[0] == labels(class_="ApplyEyeMakeup", class_id=1, split="train", group="ApplyEyeMakeup_g08")
    assert found[2] == labels(class_="HandstandPushups", class_id=2, split="test", group="HandstandPushups_g01")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("trainlist01.txt", "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 2\n", "line 1: ApplyEyeMakeup has number 2, and 1"),
        ("trainlist01.txt", "Jump/v_Jump_g08_c01.avi 2\n", "line 1: is 'Jump/v_Jump_g08_c01.avi 2' and not"),
        ("trainlist01.txt", "v_ApplyEyeMakeup_g08_c01.avi 1\n", "line 1: is 'v_Apply"),
        (
            "testlist01.txt",
            "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c02.avi\n",
            "line 1: group ApplyEyeMakeup_g08 is in train already",
        ),
        ("classInd.txt", "ApplyEyeMakeup\n", "line 1: is 'ApplyEyeMakeup' and not a number and a class"),
    ],
)
def test_ucf101_lines_that_cannot_be_meant_are_named(tmp_path: Path, file: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"{file}, {message}"):
        read(tmp_path, "ucf101", {**UCF, file: text})


def test_hmdb51_reads_odd_names_and_lists_unused_clips_without_a_split(tmp_path: Path) -> None:
    odd = "#122#!(a);[b]&_brush_hair_u_nm_np1_ba_goo_0.avi"
    files = {
        "wave_test_split1.txt": "with space 1.avi 2 \r\n",
        "brush_hair_test_split1.txt": f"{odd} 1 \nb.avi 0 \n",
        "brush_hair_test_split2.txt": "b.avi 1 \n",
    }
    sources = read(tmp_path, "hmdb51", files)
    assert {key: dict(source.labels) for key, source in sources.items()} == {
        f"brush_hair/{odd}": labels(class_="brush_hair", class_id=0, split="train"),
        "brush_hair/b.avi": labels(class_="brush_hair", class_id=0),
        "wave/with space 1.avi": labels(class_="wave", class_id=1, split="test"),
    }
    assert read(tmp_path, "hmdb51", files, fold=2)["brush_hair/b.avi"].labels["split"] == ("train",)


@pytest.mark.parametrize("line", ["a.avi 3", "a.avi", "1"])
def test_hmdb51_lines_that_cannot_be_meant_are_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match=rf"wave_test_split1\.txt, line 2: is '{line}' and not a file name with 0, 1 or 2"):
        read(tmp_path, "hmdb51", {"wave_test_split1.txt": f"b.avi 1 \n{line}\n"})


GYM_EVENTS = {
    "0LtLS9wROrk": {
        "E_002407_002435": {
            "event": 1,
            "timestamps": [[2407.5, 2435.25]],
            "segments": {
                "A_0003_0005": {"stages": 1, "timestamps": [[3.25, 5.5]]},
                "A_0008_0012": {"stages": 3, "timestamps": [[8.0, 9.0], [9.0, 10.0], [10.0, 12.5]]},
            },
        },
        "E_003000_003010": {"event": 2, "timestamps": [[3000.0, 3010.0]], "segments": None},
    }
}
GYM = {
    "finegym_annotation_info_v1.1.json": json.dumps(GYM_EVENTS),
    "gym99_train_element_v1.1.txt": "0LtLS9wROrk_E_002407_002435_A_0003_0005 0\r\n",
    "gym99_val_element.txt": "0LtLS9wROrk_E_002407_002435_A_0008_0012 98\n",
    "gym99_categories.txt": "Clabel: 0; set: 1; Glabel: 1; (VT) round-off, flic-flac on, stretched salto backward\n"
    "Clabel: 98; set: 44; Glabel:  9; (UB) salto backward tucked\n",
    "gym288_categories.txt": "Clabel:   0; set: 1; (VT) round-off\nClabel: 1; set: 1; (VT) round-off\n",
    "gym288_train_element_v1.1.txt": "0LtLS9wROrk_E_002407_002435_A_0003_0005 1\n",
}


def test_finegym_counts_elements_from_their_event_and_spans_all_stages(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "0LtLS9wROrk.mkv").touch()
    first, second = read(tmp_path, "finegym", GYM)["0LtLS9wROrk.mkv"].spans or ()
    assert (first.native_id, first.start_s, first.end_s) == ("0LtLS9wROrk_E_002407_002435_A_0003_0005", 2410.75, 2413.0)
    assert (second.start_s, second.end_s) == (2415.5, 2420.0)
    name = "(VT) round-off, flic-flac on, stretched salto backward"
    assert first.labels == labels(class_=name, class_id=0, split="train", group="0LtLS9wROrk")
    assert second.labels == labels(class_="(UB) salto backward tucked", class_id=98, split="val", group="0LtLS9wROrk")


def test_finegym_tells_classes_of_the_same_words_apart_by_number(tmp_path: Path) -> None:
    (span,) = read(tmp_path, "finegym", GYM, classes="gym288", splits=["train"])["0LtLS9wROrk.mp4"].spans or ()
    assert span.labels == labels(class_="(VT) round-off", class_id=1, split="train", group="0LtLS9wROrk")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "gym99_val_element.txt",
            "0LtLS9wROrk_E_003000_003010_A_0001_0002 0\n",
            "line 1: .* has no times in .*1.0 and 1.1 differ",
        ),
        ("gym99_val_element.txt", "other_E_002407_002435_A_0003_0005 0\n", "line 1: .* has no times in"),
        (
            "gym99_val_element.txt",
            "0LtLS9wROrk_E_002407_002435_A_0008_0012 1\n",
            "line 1: class 1 is not in gym99_categories.txt",
        ),
        ("gym99_val_element.txt", "0LtLS9wROrk 1\n", "line 1: is '0LtLS9wROrk 1' and not"),
        ("gym99_categories.txt", "0 round-off\n", "line 1: is '0 round-off' and not 'Clabel"),
    ],
)
def test_finegym_lines_that_cannot_be_meant_are_named(tmp_path: Path, file: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"{file}, {message}"):
        read(tmp_path, "finegym", {**GYM, file: text})


AVA = {
    "ava_train_v2.2.csv": "-5KQ66BBWC4,0902,0.077,0.151,0.283,0.811,80,1\r\n"
    "-5KQ66BBWC4,0902,0.077,0.151,0.283,0.811,9,1\r\n"
    "-5KQ66BBWC4,0902,0.226,0.032,0.366,0.497,12,0\r\n"
    "-5KQ66BBWC4,0903,0.226,0.032,0.366,0.497,12,0\r\n"
    "-5KQ66BBWC4,1001,0.226,0.032,0.366,0.497,2,0\r\n",
    "ava_val_v2.2.csv": "",
    "ava_train_excluded_timestamps_v2.2.csv": "-5KQ66BBWC4,0903\r\n",
    "ava_val_excluded_timestamps_v2.2.csv": "",
    "ava_action_list_v2.2_for_activitynet_2019.pbtxt": 'item {\n  name: "read"\n  id: 9\n}\n'
    'item {\n  name: "stand"\n  id: 12\n}\n'
    'item {\n  name: "watch (a person\'s)"\n  id: 80\n}\n',
    "ava_action_list_v2.2.pbtxt": 'label {\n  name: "crouch/kneel"\n  label_id: 2\n  label_type: PERSON_MOVEMENT\n}\n',
}


def test_ava_gives_a_span_around_every_moment_with_a_box_per_person(tmp_path: Path) -> None:
    spans = read(tmp_path, "ava", AVA)["-5KQ66BBWC4.mp4"].spans or ()
    assert [(span.native_id, span.start_s, span.end_s) for span in spans] == [
        ("-5KQ66BBWC4_0902", 900.5, 903.5),
        ("-5KQ66BBWC4_1001", 999.5, 1002.5),
    ], "moment 0903 is excluded"
    assert spans[0].boxes == (
        Box(902.0, 0.077, 0.151, 0.283, 0.811, "1", ("read", "watch (a person's)")),
        Box(902.0, 0.226, 0.032, 0.366, 0.497, "0", ("stand",)),
    )
    assert spans[0].labels == labels(
        class_=("read", "stand", "watch (a person's)"), class_id=("9", "12", "80"), split="train", group="-5KQ66BBWC4"
    )


def test_ava_keeps_boxes_whose_action_is_not_evaluated_without_a_label(tmp_path: Path) -> None:
    (_, last) = read(tmp_path, "ava", AVA)["-5KQ66BBWC4.mp4"].spans or ()
    assert last.boxes[0].labels == ()
    assert "class" not in last.labels
    (_, last) = read(tmp_path, "ava", AVA, actions="all", window_s=1.0)["-5KQ66BBWC4.mp4"].spans or ()
    assert last.boxes[0].labels == ("crouch/kneel",)
    assert (last.start_s, last.end_s) == (1000.5, 1001.5)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,0902,0.3,0.1,0.2,0.2,1,0", "line 1: the box .* is not left, top, right, bottom"),
        ("a,0902,10,20,30,40,1,0", "line 1: the box"),
        ("a,0902,0.1,0.1,0.2,0.2,81,0", "line 1: action 81 is none of the 80"),
        ("a,0902,0.1,0.1,0.2,0.2,,", "line 1: action_id is '', which is not a whole number"),
        ("a,x,0.1,0.1,0.2,0.2,1,0", "line 1: timestamp is 'x', which is not a number"),
        ("a,0902,0.1,0.1,0.2,0.2,1", "line 1: has 7 fields and not the 8"),
    ],
)
def test_ava_rows_that_cannot_be_meant_are_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"ava_train_v2\.2\.csv, {message}"):
        read(tmp_path, "ava", {**AVA, "ava_train_v2.2.csv": f"{row}\n"})
