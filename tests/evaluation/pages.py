"""HTML taken apart, for the tests of what the report draws."""

from html.parser import HTMLParser

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Every element with its attributes and its text, after a check that the tags are balanced."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.texts = [], [], {}
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), f"attribute twice in {tag}: {names}"
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append((tag, len(self.found) - 1))

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> too many"
        assert self.open[-1][0] == tag, f"</{tag}> closes {self.open[-1][0]}"
        self.open.pop()

    def handle_data(self, text):
        for _, index in self.open:
            self.texts[index] = self.texts.get(index, "") + text

    def all(self, tag, **wanted):
        """(attributes, text) of the elements of a tag and with these attributes."""
        return [
            (attributes, self.texts.get(index, ""))
            for index, (name, attributes) in enumerate(self.found)
            if name == tag and all(attributes.get(key.rstrip("_")) == value for key, value in wanted.items())
        ]
