"""Faults of durability: what is synced, in which order, and what a damaged record is taken for."""

from __future__ import annotations

from tests.mutants.model import fault

_TESTS = "tests/queue/test_durability.py"
_JOURNAL = "queue/journal.py"
_SPOOL = "queue/spool.py"

FAULTS = (
    fault(
        "synchronous=NORMAL",
        "queue/sqlite.py",
        "PRAGMA synchronous = FULL",
        "PRAGMA synchronous = NORMAL",
        f"{_TESTS}::test_sqlite_commit_is_synced_before_it_returns",
    ),
    fault(
        "the spool file is not synced",
        _SPOOL,
        "            os.fdatasync(self._file)\n",
        "",
        f"{_TESTS}::test_spool_file_and_its_name_are_synced_before_it_is_finished",
    ),
    fault(
        "the spool's folder is not synced",
        _SPOOL,
        "            sync_folder(self._spool.folder)\n",
        "",
        f"{_TESTS}::test_spool_file_and_its_name_are_synced_before_it_is_finished",
    ),
    fault(
        "a spool file is finished although its sync failed",
        _SPOOL,
        "            done(self.error)\n",
        "            done(None)\n",
        f"{_TESTS}::test_spool_whose_sync_fails_is_not_finished",
    ),
    fault(
        "journal records are not synced",
        _JOURNAL,
        "        written = os.pwritev(file, pieces, start, _DSYNC)\n",
        "        written = os.pwritev(file, pieces, start, 0)\n",
        f"{_TESTS}::test_journal_is_made_durable_before_its_first_record",
    ),
    fault(
        "the journal's name is not synced",
        _JOURNAL,
        '            sync_folder(os.path.dirname(self.path) or ".")\n',
        "",
        f"{_TESTS}::test_journal_is_made_durable_before_its_first_record",
    ),
    fault(
        "the journal's length is not synced",
        _JOURNAL,
        "            os.fsync(file)\n            self.key",
        "            self.key",
        f"{_TESTS}::test_journal_is_made_durable_before_its_first_record",
    ),
    fault(
        "a short write to the journal is taken for a record",
        _JOURNAL,
        "        if written < size:\n",
        "        if written < 0:\n",
        f"{_TESTS}::test_journal_that_could_not_be_written_whole_says_so",
    ),
    fault(
        "the journal's checksum is not checked",
        _JOURNAL,
        "            if end <= len(octets) and zlib.crc32(octets[at + _CRC_AT + 4 : end]) == crc:\n",
        "            if end <= len(octets):\n",
        f"{_TESTS}::test_damage_at_any_octet_costs_its_record_alone",
    ),
    fault(
        "records of any key",
        _JOURNAL,
        "    mark = _MAGIC + key\n",
        "    mark = _MAGIC\n",
        f"{_TESTS}::test_record_of_another_key_is_none",
    ),
    fault(
        "a half of the journal is written again too early",
        "queue/ahead.py",
        "                    self.journal.turn()\n                    self._can_turn = False\n",
        "                    self.journal.turn()\n",
        f"{_TESTS}::test_half_of_a_journal_is_written_again_only_when_the_database_has_it",
    ),
    fault(
        "the write-ahead log is lengthened without a sync",
        "queue/wal.py",
        "                os.fsync(handle)\n",
        "",
        f"{_TESTS}::test_lengthened_wal_is_synced_before_it_is_used",
    ),
    fault(
        "a failed commit in the loop is taken for done",
        "queue/commit.py",
        "        is_done = False\n",
        "        is_done = True\n",
        f"{_TESTS}::test_commit_that_fails_is_no_acceptance",
    ),
    fault(
        "a failed commit of one is answered as done",
        "queue/commit.py",
        "            if len(batch) == 1:\n                return [(None, error)]\n",
        "            if len(batch) == 1:\n                return [(None, None)]\n",
        "tests/queue/test_commit_spool.py::test_only_the_culprit_fails",
        f"{_TESTS}::test_commit_that_fails_is_no_acceptance",
    ),
    fault(
        "a failed message of a batch is answered as done",
        "queue/commit.py",
        "            return self._apply(accepts, settles, runs)\n        except Exception as error:\n            return [(None, error)]\n",
        "            return self._apply(accepts, settles, runs)\n        except Exception as error:\n            return [(None, None)]\n",
        f"{_TESTS}::test_commit_that_fails_is_no_acceptance",
    ),
    fault(
        "a message without its content is lost",
        "queue/sqlite_claim.py",
        "        self._quarantine(key, why)\n        return None\n",
        "        return None\n",
        f"{_TESTS}::test_message_without_its_content_is_held_and_the_rest_goes_on",
    ),
    fault(
        "recovery forgets the history",
        "queue/sqlite.py",
        '        db.execute(SQL["recover_attempts"], (now,))\n',
        "",
        f"{_TESTS}::test_crash_makes_what_was_leased_due_and_an_attempt_in_doubt",
    ),
)
