"""Faults of what root and other users of the machine meet in the data directory."""

from __future__ import annotations

from tests.mutants.model import fault

_OWNER, _FILES = "tests/test_as_owner.py", "tests/config/test_files.py"

FAULTS = (
    fault(
        "root stays root in another user's folder",
        "daemon/privileges.py",
        "    if not belongs_to_another(folder):\n        return\n    found",
        "    if belongs_to_another(folder):\n        return\n    found",
        f"{_OWNER}::test_import_reads_as_root_and_writes_as_the_owner",
    ),
    fault(
        "root keeps its groups",
        "daemon/privileges.py",
        "            os.initgroups(identity.name, identity.gid)\n",
        "            pass\n",
        f"{_OWNER}::test_owner_has_no_group_of_roots",
    ),
    fault(
        "root keeps its group",
        "daemon/privileges.py",
        "        os.setgid(identity.gid)\n",
        "",
        f"{_OWNER}::test_owner_has_no_group_of_roots",
    ),
    fault(
        "reload decides its folder as root",
        "cli/reload.py",
        "    folder = server_folder(data_dir)\n",
        "    from ..config.usual import usual_folder\n\n    folder = data_dir or usual_folder()\n",
        f"{_OWNER}::test_reload_signals_no_process_that_the_owner_could_not",
    ),
    fault(
        "the export opens its target as the owner",
        "cli/mailbox.py",
        '            file = _new_file(target, stack) if kind != "maildir" else None\n',
        "            server_folder(data_dir)\n"
        '            file = _new_file(target, stack) if kind != "maildir" else None\n',
        f"{_OWNER}::test_export_writes_where_root_may",
    ),
    fault(
        "a log file may be a link",
        "daemon/logs.py",
        "    return os.O_NOFOLLOW if os.geteuid() == 0 and os.stat(folder).st_uid != 0 else 0\n",
        "    return 0\n",
        f"{_OWNER}::test_log_file_of_another_users_folder_is_no_link",
    ),
    fault(
        "a second name of root's file is given away",
        "daemon/logs.py",
        "        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:\n",
        "        if stat.S_ISREG(status.st_mode):\n",
        f"{_OWNER}::test_log_file_of_another_users_folder_is_no_link",
    ),
    fault(
        "shards that come and go are asked for ever",
        "queue/whole.py",
        '        if time.monotonic() > deadline:\n            raise StoreError(f"the queue in',
        '        if False:\n            raise StoreError(f"the queue in',
        f"{_OWNER}::test_shards_that_come_and_go_end_a_command",
    ),
    fault(
        "a data directory of another user is taken",
        "config/files.py",
        "    if found.st_uid not in _trusted():\n        owner",
        "    if False:\n        owner",
        f"{_FILES}::test_data_directory_of_another_user_is_refused",
    ),
    fault(
        "a data directory that every user may write is taken",
        "config/files.py",
        "    if found.st_mode & stat.S_IWOTH:\n        raise",
        "    if False:\n        raise",
        f"{_FILES}::test_data_directory_that_every_user_may_write_is_refused",
    ),
)
