# Sourced by tests/run.sh: as root, installs Debian packages that some tests need. Otherwise, those tests are skipped.

SLURM_PACKAGES=(slurmctld slurmd slurm-client munge slurmdbd mariadb-server-core mariadb-client-core iproute2 procps)
BROWSER_PACKAGES=(chromium)

install_system_packages() {
    local packages=()
    # An existing Slurm set-up is neither changed nor used.
    if [[ ! -e /etc/slurm/slurm.conf && -z ${SLURM_CONF:-} ]] && ! { command -v slurmctld && command -v mariadbd; } >/dev/null; then
        packages+=("${SLURM_PACKAGES[@]}")
    fi
    command -v chromium >/dev/null || packages+=("${BROWSER_PACKAGES[@]}")
    if ((${#packages[@]} == 0)); then
        return 0
    fi
    if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
        echo "NOT INSTALLED, no root or no apt-get: ${packages[*]}; the tests that need them are skipped" >&2
        return 0
    fi
    echo "installing for the tests: ${packages[*]}"
    local policy=/usr/sbin/policy-rc.d ours=0
    if [[ ! -e $policy ]]; then
        # Debian's way to keep packages from starting their services.
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod +x $policy
        ours=1
    fi
    apt-get update -qq || true
    if ! DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null; then
        echo "NOT INSTALLED, apt-get failed: ${packages[*]}; the tests that need them are skipped" >&2
    fi
    if ((ours)); then rm -f $policy; fi
}
