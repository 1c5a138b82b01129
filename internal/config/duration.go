package config

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

const day = 24 * time.Hour

// parseDuration reads what time.ParseDuration reads, and days: "90s", "1h30m", "30d", "1d12h". Zero needs no unit. A
// number alone is refused, because nobody can tell whether its writer meant seconds.
func parseDuration(s string) (time.Duration, error) {
	fault := fmt.Errorf("%q is not a duration: write 90s, 15m, 36h or 30d", s)
	days, rest, hasDays := strings.Cut(s, "d")
	if !hasDays {
		days, rest = "0", s
	}
	n, err := strconv.ParseUint(days, 10, 16)
	if err != nil || hasDays && len(rest) > 0 && (rest[0] < '0' || rest[0] > '9') {
		return 0, fault
	}
	d := time.Duration(n) * day // 65535 days fit
	if rest == "" {
		if !hasDays {
			return 0, fault
		}
		return d, nil
	}
	r, err := time.ParseDuration(rest)
	if err != nil || r < 0 || d+r < d {
		return 0, fault
	}
	return d + r, nil
}

// formatDuration writes what parseDuration reads, as short as it can.
func formatDuration(d time.Duration) string {
	if d > 0 && d%day == 0 {
		return strconv.FormatInt(int64(d/day), 10) + "d"
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
