package spool_test

import (
	"log/slog"
	"testing"

	"understudy/internal/mta"
	"understudy/spool"
	"understudy/spool/spooltest"
)

func TestMemoryMeetsTheContract(t *testing.T) {
	spooltest.Run(t, spooltest.Engine{
		Open:   func(_ testing.TB, cfg spool.Config) spool.Spool { return spool.NewMemoryConfig(cfg) },
		Reopen: func(_ testing.TB, s spool.Spool) spool.Spool { return s.(*spool.Memory).Restart() },
	})
}

func TestBadgerMeetsTheContract(t *testing.T) {
	dirs := make(map[spool.Spool]spool.Config)
	open := func(t testing.TB, cfg spool.Config) spool.Spool {
		t.Helper()
		s, err := spool.Open(t.Context(), cfg, slog.New(slog.NewTextHandler(t.Output(), nil)), nil)
		if err != nil {
			t.Fatal(err)
		}
		dirs[s] = cfg
		return s
	}
	spooltest.Run(t, spooltest.Engine{
		Open: func(t testing.TB, cfg spool.Config) spool.Spool {
			return open(t, smallConfig(t, cfg))
		},
		Reopen: func(t testing.TB, s spool.Spool) spool.Spool {
			t.Helper()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			return open(t, dirs[s])
		},
		Kill: func(t testing.TB, s spool.Spool) spool.Spool {
			t.Helper()
			spool.Crash(s)
			return open(t, dirs[s])
		},
	})
}

// smallConfig makes a configuration for a test out of the quotas of cfg.
func smallConfig(t testing.TB, cfg spool.Config) spool.Config {
	small := spool.DefaultConfig()
	small.Dir = t.TempDir()
	small.Reserve, small.ReservePercent, small.Ballast = 64*mta.MiB, 0, 0
	small.GenerationSize = 4 * mta.MiB
	small.MaxSize, small.MaxDomainSize = cfg.MaxSize, cfg.MaxDomainSize
	return small
}

func TestStateMeetsTheContract(t *testing.T) {
	t.Run("memory", func(t *testing.T) {
		spooltest.RunState(t, spooltest.StateEngine{Open: func(testing.TB) spool.State { return spool.NewMemoryState() }})
	})
	t.Run("badger", func(t *testing.T) {
		dirs := make(map[spool.State]spool.Config)
		open := func(t testing.TB, cfg spool.Config) spool.State {
			t.Helper()
			s, err := spool.OpenState(t.Context(), cfg, slog.New(slog.NewTextHandler(t.Output(), nil)))
			if err != nil {
				t.Fatal(err)
			}
			dirs[s] = cfg
			return s
		}
		spooltest.RunState(t, spooltest.StateEngine{
			Open: func(t testing.TB) spool.State { return open(t, smallConfig(t, spool.Config{})) },
			Reopen: func(t testing.TB, s spool.State) spool.State {
				t.Helper()
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				return open(t, dirs[s])
			},
		})
	})
}
