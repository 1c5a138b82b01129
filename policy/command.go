package policy

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// fetchCommand takes the output of a program that says, by ending with 0, that this is all.
func fetchCommand(ctx context.Context, j job) (*content, error) {
	cmd := exec.CommandContext(ctx, j.cfg.Command[0], j.cfg.Command[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that its children end with it
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	said := &firstWords{}
	cmd.Stderr = said
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &stream{r: out, limit: int64(j.cfg.MaxSize)}
	c, err := readContent(ctx, s, j.cfg.Command[0], j, tag{})
	_, _ = io.Copy(io.Discard, s) // its own end is worth more than what was wrong with a line
	tooLarge := s.limit < 0
	if tooLarge {
		_ = cmd.Cancel()
	}
	ended := cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s: took longer than %v", j.cfg.Command[0], j.cfg.Timeout)
	case ended != nil && !tooLarge:
		return nil, fmt.Errorf("%s: %w%s", j.cfg.Command[0], ended, said.text())
	case s.err != nil:
		return nil, fmt.Errorf("%s: %w", j.cfg.Command[0], s.err)
	}
	return c, err
}

// firstWords keeps the beginning of what a program complains of.
type firstWords struct{ b []byte }

func (w *firstWords) Write(p []byte) (int, error) {
	w.b = append(w.b, p[:min(len(p), 500-len(w.b))]...)
	return len(p), nil
}

func (w *firstWords) text() string {
	if s := strings.TrimSpace(string(w.b)); s != "" {
		return fmt.Sprintf(": %q", s)
	}
	return ""
}
