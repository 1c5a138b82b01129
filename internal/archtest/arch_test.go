// Package archtest holds the arrows of the architecture: who may import whom.
package archtest

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// parts are the five that never import each other.
var parts = []string{"inbound", "spool", "forwarder", "healthprobe", "policy"}

// arrows says what each package of ours may import of ours, outside its tests. Sub-packages count as their parent
// unless they are named themselves. A package that is missing here fails the test: its place must be decided.
var arrows = map[string][]string{
	"cmd/understudy":        {"internal/daemon", "internal/config", "internal/admin", "configs", "internal/mta"},
	"internal/daemon":       append([]string{"internal/config", "internal/admin", "internal/alert", "internal/parity", "internal/smtpc", "internal/dnsx", "internal/dsn", "internal/mta", "configs"}, parts...),
	"internal/admin":        append([]string{"internal/parity", "internal/mta"}, parts...),
	"internal/config":       append([]string{"internal/dnsx", "internal/dnsbl", "internal/mailauth", "internal/filter", "internal/parity", "internal/alert", "internal/admin", "internal/smtpc", "internal/mta"}, parts...),
	"configs":               {},
	"inbound":               {"internal/mta"},
	"spool":                 {"internal/mta"},
	"spool/spooltest":       {"spool", "internal/mta"},
	"forwarder":             {"internal/smtpc", "internal/dsn", "internal/dnsx", "internal/mta"},
	"healthprobe":           {"internal/smtpc", "internal/dnsx", "internal/mta"},
	"policy":                {"internal/dnsbl", "internal/mailauth", "internal/filter", "internal/header", "internal/dnsx", "internal/mta"},
	"internal/dnsbl":        {"internal/dnsx", "internal/mta"},
	"internal/header":       {"internal/mta"},
	"internal/mailauth":     {"internal/header", "internal/dnsx", "internal/mta"},
	"internal/filter":       {"internal/header", "internal/mta"},
	"internal/parity":       {"internal/mta"},
	"internal/alert":        {"internal/mta"},
	"internal/smtpc":        {"internal/mta"},
	"internal/dnsx":         {"internal/mta"},
	"internal/dnsx/dnstest": {"internal/dnsx", "internal/mta"},
	"internal/dsn":          {"internal/mta"},
	"internal/testkit":      {"internal/mta", "internal/smtpc", "internal/dnsx"},
	"internal/testkit/peer": {},
	"internal/archtest":     {},
	"internal/mta":          {},
}

// testOnly may be imported by tests alone.
var testOnly = []string{"internal/testkit", "internal/testkit/peer", "internal/dnsx/dnstest", "spool/spooltest"}

// topLevel is all that may stand at the root.
var topLevel = []string{
	"cmd", "inbound", "spool", "forwarder", "healthprobe", "policy", "configs", "internal", "docs", "go.mod", "go.sum",
	"docker-compose.yml", "Dockerfile", "Makefile", "README.md", "HACKING.md", "CHANGELOG.md", "LICENSE",
	".git", ".github", ".ci", ".gitignore", ".dockerignore",
}

func TestImportsFollowTheArrows(t *testing.T) {
	root := filepath.Join("..", "..")
	seen := 0
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && file != root && (strings.HasPrefix(name, ".") || name == "testdata") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") {
			return nil
		}
		rel, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		seen++
		checkFile(t, file, filepath.ToSlash(rel))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen == 0 {
		t.Fatal("no Go files found: the test looks in the wrong place")
	}
}

func checkFile(t *testing.T, file, rel string) {
	t.Helper()
	from := path.Dir(rel)
	may, known := arrows[from]
	if !known {
		t.Errorf("%s: package %s has no place among the arrows", rel, from)
		return
	}
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
	if err != nil {
		t.Errorf("%s: %v", rel, err)
		return
	}
	isTest := strings.HasSuffix(rel, "_test.go")
	for _, imp := range f.Imports {
		p, _ := strconv.Unquote(imp.Path.Value)
		to, ours := strings.CutPrefix(p, "understudy/")
		switch {
		case !ours || isTest || to == from:
		case slices.Contains(testOnly, to) && !slices.Contains(testOnly, from):
			t.Errorf("%s imports %s, which is for tests only", rel, to)
		case !slices.Contains(may, to):
			t.Errorf("%s: the arrow %s → %s does not exist", rel, from, to)
		}
	}
}

func TestTheTopLevelIsFixed(t *testing.T) {
	entries, err := os.ReadDir(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		// What a build or a run leaves here is ignored by git.
		if e.Name() == "understudy" || e.Name() == "bin" || e.Name() == "understudy-data" || e.Name() == "coverage.out" {
			continue
		}
		if !slices.Contains(topLevel, e.Name()) {
			t.Errorf("%s does not belong at the top level", e.Name())
		}
	}
}
