from patients.case import Case
from patients.tuning import data_faults, loop_faults
from patients.tuning.hosts import HOSTS

CASES: tuple[Case, ...] = tuple(host.healthy() for host in HOSTS) + loop_faults.CASES + data_faults.CASES
