from dst.words import few, one_line, some


def test_names_are_shown_in_one_line():
    assert one_line("a\nb\x1b[2J\udcff é") == r"a\nb\x1b[2J\udcff é"


def test_the_first_few_notes_are_told_and_how_many_more_there_are():
    assert few(["a"]) == ["a"]
    assert few([str(number) for number in range(10)])[-2:] == ["7", "and 2 more"]


def test_a_short_list_is_named_whole_and_a_long_one_by_its_beginning():
    assert some(["a", "b"]) == "a, b"
    assert some(["a", "b", "c", "d"], 2) == "a, b and 2 more"
