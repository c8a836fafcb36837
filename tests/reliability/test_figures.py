"""The figures at the end of a session, which several test processes have a part in."""

from tests.reliability.figures import gather


def test_counts_add_up_and_the_largest_error_stays() -> None:
    said = gather(
        [
            ("kills survived", "sum", 3),
            ("error", "largest", 1e-7),
            ("seed", "text", "5"),
            ("kills survived", "sum", 4),
            ("error", "largest", 3e-8),
            ("seed", "text", "6"),
        ]
    )
    assert said == {"kills survived": "7", "error": "1e-07", "seed": "5, 6"}
