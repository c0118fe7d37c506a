"""The vote of the nearest neighbours: how well the features order the clips with nothing learned at all."""

from typing import Literal

from pydantic import Field

from stages.evals import Classes, Features, ProbeConfig, Scores, flattened, placed, standardised


class Config(ProbeConfig):
    """Names the class by a vote of the nearest training clips, by the cosine of standardised features."""

    name: Literal["knn"] = "knn"
    """The name in a recipe."""

    num_neighbours: int = Field(default=10, gt=0)
    """Clips that vote, each weighted by the inverse of its distance. Between 10 and 20 is usual; 10 is our choice."""

    @property
    def title(self) -> str:
        """With its number of neighbours."""
        return f"{self.num_neighbours} nearest neighbours"

    def scores(
        self, features: Features, classes: Classes, *, num_classes: int, groups: Classes, test_features: Features
    ) -> Scores:
        """Every class's share of the vote."""
        from sklearn.neighbors import KNeighborsClassifier  # takes seconds, and most commands only read the config

        train, test = standardised(flattened(features), flattened(test_features))
        voters = min(self.num_neighbours, len(classes))
        probe = KNeighborsClassifier(voters, weights="distance", metric="cosine", algorithm="brute").fit(train, classes)
        return placed(probe.predict_proba(test), probe.classes_, num_classes)
