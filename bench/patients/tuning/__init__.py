from patients.case import Case
from patients.tuning import data_faults, healthy, loop_faults, net_faults, step_faults
from patients.tuning.hosts import HOSTS

CASES: tuple[Case, ...] = (
    tuple(host.healthy() for host in HOSTS)
    + healthy.CASES
    + loop_faults.CASES
    + data_faults.CASES
    + net_faults.CASES
    + step_faults.CASES
)
